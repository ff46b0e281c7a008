"""What results depend on, written to a folder, and two such folders compared bit by bit: for changes that should change no result.

    python -m tests.results write before      # then change the code
    python -m tests.results write after
    python -m tests.results compare before after

Files are written by every layer and neuron method on the bundled model, by one constructed pipeline of each family, and by the demo.
Takes about ten minutes; the same machine and the same number of threads give the same bits.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import neuroscope as ns
from neuroscope.demo import run_demo
from neuroscope.testbed.construction.plants import REWRITING

METHODS: Mapping[str, ns.Localization] = {
    "locogen": ns.LocoGen(),
    "window2": ns.LocoGen(window=2, pooled="other"),
    "grow": ns.LocoGen(window="grow"),
    "parts": ns.LocoGen(parts=2, roles="value"),
    "auto": ns.LocoGen(search="auto"),
    "sets": ns.LocoGen(search="sets"),
    "tracing": ns.CausalTracing(noise=3.0),
    "tracing-text": ns.CausalTracing(component="text"),
    "attention": ns.AttentionContribution(),
    "attention-other": ns.AttentionContribution(against="other"),
    "patching": ns.AttributionPatching(),
    "forced": ns.TeacherForced(),
    "racing": ns.Racing(),
    "sufficiency": ns.LocoGen(direction="sufficiency"),
    "gradient": ns.IntegratedGradients(),
    "ablation": ns.NeuronAblation(roles="value", group=32),
}
#: Methods that make so many images that two prompts and one seed must do.
COSTLY = ("gradient", "ablation", "sets", "grow")


def results_of_methods() -> Iterator[tuple[str, Any]]:
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    concept = ns.Concept.style("stipple", prompts="testbed", against="plain")
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "quiet": True}
    for name, method in METHODS.items():
        seeds, pairs = ([0], 2) if name in COSTLY else ([0, 1], 3)
        if isinstance(method, ns.CausalAttribution):
            yield f"method-{name}", ns.rank(graph, concept, method, layers=12, seeds=seeds, pairs=pairs, **options)
        else:
            yield f"method-{name}", ns.localize(graph, concept, method, ns.LatentShare(), seeds, pairs=pairs, **options)


def results_of_family(family: str) -> Iterator[tuple[str, Any]]:
    """Layers, a recording, scores, a mask, an edit, and the images that these make, as latents or pixels by name."""
    pipe = ns.testbed.build(family, "layer", 0)
    plant, graph = ns.testbed.planted(pipe), ns.HookGraph(pipe)
    (layer,) = plant.layers
    options = plant.generation | {"quiet": True}
    yield "locogen", ns.localize(graph, plant.concept, ns.LocoGen(), ns.LatentShare(), [0], pairs=1, keep_images=0, **options)
    if family in REWRITING:  # nothing is recorded without a run there, and nothing edited
        return
    if family == "sd1":
        recording = ns.record(graph, plant.concept, graph.sites.where(layer=layer), **options)
    else:
        recording = ns.record(graph, plant.concept, graph.sites.where(layer=layer, role="value"), quiet=True)
    yield "recording", recording
    scores = ns.score(recording, ns.Welch())
    yield "welch", scores
    mask = ns.NeuronMask(scores.top(8), fill=recording.mean("absent"))
    yield "mask", mask
    edit = ns.edit(graph, plant.concept, ns.LocoEdit(), layer)
    yield "edit", edit
    images = {}
    for name, changes in {"none": (), "mask": (mask,), "edit": (edit,), "both": (mask, edit)}.items():
        with graph.apply(*changes):
            images[name] = drawn(pipe, plant)
    with ns.fold(graph, edit):
        images["folded"] = drawn(pipe, plant)
    yield "images", images


def drawn(pipe: Any, plant: ns.testbed.Planted) -> torch.Tensor:
    kind = "latent" if getattr(pipe, "vae", None) is not None else "pt"
    noise = torch.Generator().manual_seed(0)
    return pipe(plant.concept.present[0], generator=noise, output_type=kind, **plant.generation)[0].contiguous()


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    of_families = ((f"{family}-{name}", each) for family in ns.testbed.FAMILIES for name, each in results_of_family(family))
    for name, result in chain(results_of_methods(), of_families):
        path = folder / f"{name}.safetensors"
        if isinstance(result, dict):
            save_file(result, path)
        else:
            ns.save(result, path)
        if hasattr(result, "to_frame"):
            result.to_frame().to_csv(path.with_suffix(".csv"), index=False)
    run_demo(folder / "demo", quiet=True)


def differing(first: Path, second: Path) -> list[str]:
    """The tables and tensor files that are not the same in both folders; headers of tensor files may differ, as versions do."""
    names = sorted(
        {path.relative_to(each) for each in (first, second) for path in each.rglob("*") if path.suffix in (".safetensors", ".csv")}
    )
    return [str(name) for name in names if not same(first / name, second / name)]


def same(first: Path, second: Path) -> bool:
    if not (first.exists() and second.exists()):
        return False
    if first.suffix == ".csv":
        return first.read_bytes() == second.read_bytes()
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(bits(one[name]) == bits(other[name]) for name in one)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        found = differing(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit("differ: " + ", ".join(found) if found else 0)
