"""What edits of SDXL do where the concept passes through layers, through the pooled text, or through both.

python -m benchmarks.sdxl_edits         (about three minutes on one core; finished rows are kept in benchmarks/results/sdxl_edits.json)
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import neuroscope as ns
from benchmarks.kept import FOLDER, Kept
from neuroscope.testbed.construction.pipelines import build_unplanted, generation_of
from neuroscope.testbed.construction.plants import concept as stated_concept

SEEDS = (41, 42, 43)
#: What carries the concept; in a model without a plant both do.
CARRIERS = {"pooled": "the pooled text", "layer": "one layer", "unplanted": "both"}
ROLES = {"layers": ("key", "value"), "layers and pooled": ("key", "value", "pooled")}
TOKENS = ("subject", "all")


def main() -> None:
    kept = Kept(FOLDER / "sdxl_edits.json")
    for plant, seed in tqdm(list(itertools.product(CARRIERS, SEEDS))):
        if not kept.holds("edits", plant=plant, seed=seed):
            kept.add("edits", {"plant": plant, "seed": seed} | measured(plant, seed))


def measured(plant: str, seed: int) -> dict[str, float]:
    """The share that the pooled text carries, and how far each edit of all layers takes the images of the way to the other prompts'."""
    pipe = build_unplanted("sdxl", seed) if plant == "unplanted" else ns.testbed.build("sdxl", plant, seed)
    graph, concept, options = ns.HookGraph(pipe), stated_concept(), generation_of("sdxl")
    layers = graph.sites.layers
    found = ns.localize(
        graph, concept, ns.LocoGen(window=len(layers)), ns.LatentShare(), [0], pairs=None, keep_images=0, quiet=True, **options
    )
    row = {"pooled_share": (found.pooled_share or (np.nan,))[0]}
    source, target = (latents(graph, prompts, options) for prompts in (concept.present, concept.absent))
    for (name, roles), tokens in itertools.product(ROLES.items(), TOKENS):
        edit = ns.edit(graph, concept, ns.LocoEdit(roles=roles, tokens=tokens), layers)
        with graph.apply(edit):
            edited = latents(graph, concept.present, options)
        row[f"{name}, {tokens}"] = float(np.mean([ns.LatentShare()(*each) for each in zip(edited, source, target, strict=True)]))
    return row


def latents(graph: ns.HookGraph, prompts: Any, options: dict[str, Any]) -> torch.Tensor:
    """The final latents of prompts, each from the noise of its number."""
    noise = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    result: torch.Tensor = graph.pipe(list(prompts), generator=noise, output_type="latent", **options).images
    return result


if __name__ == "__main__":
    main()
