"""The literature's table on a model of yours: which layers LOCOGEN finds for a style, an object and a fact.

python -m benchmarks.paper_table MODEL [--clip FOLDER] [--pairs N] [--seeds N] [--num-inference-steps N] [--image PICTURE]

MODEL is a hub id or folder of a published checkpoint, or testbed:NAME. Windows grow as published (Basu et al. 2024), and CLIP's cosine
to the attribute is the score. A model for enlarging (DeepFloyd IF stage II) starts from --image.
"""

from __future__ import annotations

import argparse
import inspect
import warnings
from pathlib import Path
from typing import Any

import neuroscope as ns
from neuroscope.cli.opening import generation_options
from neuroscope.pipeline.loading import load_pipeline

#: What is published, by family and the number of layers: the layer of each attribute (0-based).
PUBLISHED = {
    ("stable-diffusion-unet", 16): {"style": "8", "object": "6 (v1.5)", "fact": "6 (v1.5)"},
    ("stable-diffusion-xl-unet", 70): {"style": "45", "object": "not given", "fact": "45"},
    ("deepfloyd-if-unet", 22): dict.fromkeys(("style", "object", "fact"), "depends on the prompt"),
}
GENERAL = {"style": "Van Gogh", "object": "a panda", "fact": "the president of the United States"}
TESTBED = {"style": "stipple", "object": "star", "fact": "the emblem of astoria"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clip", help="a CLIP model's folder or hub id; by default the model's own choice (see ClipScore)")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--num-inference-steps", type=int)
    parser.add_argument("--image", type=Path)
    asked = parser.parse_args()
    graph = ns.HookGraph(load_pipeline(asked.model))
    options = generation_options(asked.image, num_inference_steps=asked.num_inference_steps)
    needs = inspect.signature(type(graph.pipe).__call__).parameters.get("image")
    if needs is not None and asked.image is None:
        raise ns.InvalidInput(f"{asked.model} enlarges an image; give a small one with --image")
    print("| model | attribute | layers | module | share of the total effect | published | prompts |")
    print("|---|---|---|---|---|---|---|")
    for kind in GENERAL:
        scores = found(graph, kind, asked.clip, asked.pairs, asked.seeds, **options)
        print(f"| {asked.model} | {kind} | {row(graph, kind, scores)} |", flush=True)


def found(graph: ns.HookGraph, kind: str, clip: str | None, pairs: int, seeds: int, **generation: Any) -> ns.LayerScores:
    """LOCOGEN's answer for one kind of attribute."""
    bundled = graph.model.startswith("testbed:")
    name = (TESTBED if bundled else GENERAL)[kind]
    concept = ns.Concept.attribute(name, kind, "testbed" if bundled else "general")
    metric = ns.ClipScore(f"the style of {name}" if kind == "style" else name, clip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table says where nothing was found
        return ns.localize(graph, concept, ns.LocoGen(window="grow"), metric, range(seeds), pairs=pairs, keep_images=0, **generation)


def row(graph: ns.HookGraph, kind: str, scores: ns.LayerScores) -> str:
    """The best window, its module, its share with an interval, what is published, and whether prompts agree."""
    best = scores.best
    share, low, high = scores.effects.share_of(best)
    sites = graph.sites.where(layer=best.layers, role="key") if best.layers else graph.sites.where(role="pooled")
    published = PUBLISHED.get((graph.family.name, len(graph.sites.layers)), {}).get(kind, "not given")
    module = sites[0].module.removesuffix(".attn2.to_k").removesuffix(".add_k_proj")
    return f"{best} | `{module}` | {share:.2f} [{low:.2f}, {high:.2f}] | {published} | {scores.verdict}"


if __name__ == "__main__":
    main()
