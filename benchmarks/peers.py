"""The same work done otherwise: an exhaustive LOCOGEN sweep and a recording, as published, with nnsight and with plain hooks.

python -m benchmarks.peers    (--models: of the testbed; --steps; --rounds; peak memory is that of a process of its own each)
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnsight.modeling.diffusion import DiffusionModel
from torch import Tensor, nn

import neuroscope as ns
from benchmarks.own_process import in_own_process, peak_memory
from benchmarks.ranking import stipple
from neuroscope.generation.metering import metered

RECORDED = 16  # prompts an arm
TOLERANCE = 1e-3  # the largest allowed difference between two ways' results, as a share of the largest value


@dataclass
class Work:
    """What each way is asked to do: which prompts, on which pipeline, with which options."""

    pipe: Any
    concept: ns.Concept
    options: dict[str, Any]

    @classmethod
    def of(cls, model: str, steps: int) -> Work:
        pipe = ns.testbed.load(model)
        concept = ns.testbed.planted(pipe).concept if "/" in model else stipple(2 * RECORDED)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, concept, {"num_inference_steps": steps, "guidance_scale": 3.0})

    @property
    def pair(self) -> tuple[str, str]:
        return self.concept.present[0], self.concept.absent[0]

    @property
    def layers(self) -> list[str]:
        """The cross-attentions' paths; in this model the order of the alphabet is that of execution."""
        return sorted(path for path, _ in self.pipe.unet.named_modules() if path.endswith("attn2"))

    @property
    def sites(self) -> list[str]:
        """The paths of keys, values, queries and feed-forwards in execution order."""
        names = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "ff.net.0")
        blocks = [path.removesuffix(".attn2") for path in self.layers]
        return [f"{block}.{name}" for block in blocks for name in names]

    def call(self, seeds: Sequence[int]) -> dict[str, Any]:
        """The arguments of a pipeline's call beside its prompts, whose images start from the noise of these seeds."""
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        return {"generator": noise, "output_type": "latent", **self.options}

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], hooks: dict[str, Callable] | None = None) -> Tensor:
        """The final latents of prompts, with forward hooks on modules by their paths."""
        with ExitStack() as stack, torch.no_grad():
            for path, hook in (hooks or {}).items():
                stack.callback(self.pipe.unet.get_submodule(path).register_forward_hook(hook).remove)
            return self.pipe(list(prompts), **self.call(seeds)).images

    def encode(self, prompt: str) -> Tensor:
        return self.pipe.encode_prompt(prompt, "cpu", 1, False)[0].detach()

    @functools.cached_property
    def graph(self) -> ns.HookGraph:
        return ns.HookGraph(self.pipe)

    @functools.cached_property
    def traced(self) -> DiffusionModel:
        """The pipeline in nnsight, which loads it from a folder; from then on it is this work's pipeline."""
        with tempfile.TemporaryDirectory() as folder:
            self.pipe.save_pretrained(folder)
            model = DiffusionModel(folder, dispatch=True, dtype=torch.float32)
        self.pipe = model.pipeline
        self.pipe.set_progress_bar_config(disable=True)
        return model


def effects(base: Tensor, goal: Tensor, windows: Sequence[Tensor]) -> np.ndarray:
    """Each window's share of the way from the unchanged run to the total effect."""
    way = (goal - base).double().flatten()
    return np.array([float((each - base).double().flatten() @ way / way.square().sum()) for each in windows])


def sweep_as_published(work: Work) -> np.ndarray:
    """One window at a time; at every step the other prompt's keys and values anew, put into the conditional row."""
    present, absent = work.pair
    text = work.encode(absent)

    def swap(module: nn.Module, _args: tuple, output: Tensor) -> None:
        output[1] = (text @ module.weight.T)[0]

    windows = [work.draw([present], [0], {f"{layer}.to_k": swap, f"{layer}.to_v": swap}) for layer in work.layers]
    return effects(work.draw([present], [0]), work.draw([absent], [0]), windows)


def sweep_with_hooks(work: Work) -> np.ndarray:
    """All windows in one batch; the other prompt's keys and values are computed once."""
    present, absent = work.pair
    text, layers = work.encode(absent), work.layers
    prompts = [present] * (len(layers) + 1) + [absent]
    hooks = {}
    for row, layer in enumerate(layers, len(prompts)):
        for path in (f"{layer}.to_k", f"{layer}.to_v"):
            other = work.pipe.unet.get_submodule(path)(text)[0].detach()
            hooks[path] = functools.partial(_put, row, other)
    *windows, base, goal = work.draw(prompts, [0] * len(prompts), hooks)
    return effects(base, goal, windows)


def _put(row: int, other: Tensor, _module: nn.Module, _args: tuple, output: Tensor) -> None:
    output[row] = other


def sweep_with_nnsight(work: Work) -> np.ndarray:
    """One trace with an invoke a window; an invoke sees its image's unconditional and conditional row."""
    present, absent = work.pair
    text, model, layers = work.encode(absent), work.traced, work.layers
    with model.generate(**work.call([0] * (len(layers) + 2))) as tracer:
        for layer in layers:
            attention = model.get(f"unet.{layer}")
            with tracer.invoke(present):
                for _ in tracer.iter[: work.options["num_inference_steps"]]:
                    attention.to_k.output = torch.cat([attention.to_k.output[:1], text @ attention.to_k.weight.T])
                    attention.to_v.output = torch.cat([attention.to_v.output[:1], text @ attention.to_v.weight.T])
        with tracer.invoke([present, absent]):
            pass
        with tracer.invoke():
            made = model.output.save()
    *windows, base, goal = made.images
    return effects(base, goal, windows)


def sweep_with_neuroscope(work: Work) -> np.ndarray:
    concept = ns.Concept(work.concept.name, *([each] for each in work.pair))
    options = {"seeds": [0], "batch_size": len(work.layers) + 2, "keep_images": 0, "quiet": True, **work.options}
    return np.array(ns.localize(work.graph, concept, ns.LocoGen(), ns.LatentShare(), **options).scores)


def record_with_hooks(work: Work, keep: str) -> np.ndarray:
    """Hooks that keep whole activations until the batch is done ("whole"), or each image's means ("means")."""
    found = []
    for prompts in (work.concept.present, work.concept.absent):
        kept = {path: [] for path in work.sites}

        def hook(path: str, _module: nn.Module, _args: tuple, output: Tensor, kept: dict[str, list[Tensor]] = kept) -> None:
            kept[path].append(output if keep == "whole" else means(path, output))

        work.draw(prompts, range(len(prompts)), {path: functools.partial(hook, path) for path in work.sites})
        found += [[means(path, each) if keep == "whole" else each for each in steps] for path, steps in kept.items()]
    return averaged(found)


def record_with_nnsight(work: Work) -> np.ndarray:
    """The cache of nnsight, which keeps whole activations."""
    found, model = [], work.traced
    for prompts in (work.concept.present, work.concept.absent):
        with model.generate(list(prompts), **work.call(range(len(prompts)))) as tracer:
            cache = tracer.cache(modules=[model.get(f"unet.{path}") for path in work.sites])
        found += [[means(path, each) for each in cache[f"model.unet.{path}"].output] for path in work.sites]
    return averaged(found)


def record_with_neuroscope(work: Work) -> np.ndarray:
    sites = work.graph.sites.at(f"unet.{path}" for path in work.sites)
    recording = ns.record(work.graph, work.concept, sites, quiet=True, **work.options)
    return np.concatenate([recording.mean(arm)[f"unet.{path}"].numpy() for arm in ("present", "absent") for path in work.sites])


def means(path: str, output: Tensor) -> Tensor:
    """Of the conditional rows: keys and values at the last token, queries and feed-forwards averaged over the image."""
    rows = output[len(output) // 2 :].detach().double()
    return rows[:, -1].clone() if path.endswith(("to_k", "to_v")) else rows.mean(dim=1)


def averaged(found: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """The means over steps and prompts, all sites in a row."""
    return torch.cat([torch.stack(list(steps)).mean(dim=(0, 1)) for steps in found]).numpy()


JOBS: dict[str, dict[str, Callable[[Work], np.ndarray]]] = {
    "LOCOGEN sweep": {
        "neuroscope": sweep_with_neuroscope,
        "as published": sweep_as_published,
        "plain hooks, one batch": sweep_with_hooks,
        "nnsight, one batch": sweep_with_nnsight,
    },
    "recording": {
        "neuroscope": record_with_neuroscope,
        "plain hooks, whole activations": functools.partial(record_with_hooks, keep="whole"),
        "plain hooks, means": functools.partial(record_with_hooks, keep="means"),
        "nnsight, cache": record_with_nnsight,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["sd1", "sd1/layer"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    every = [(model, job) for model in asked.models for job in JOBS]
    peaks = {(*each, way): peak(*each, way, asked.steps) for each in every for way in JOBS[each[1]]}  # before this process grows
    print(
        "| model | job | way | denoiser rows | time, neuroscope's = 1 | single rounds | peak memory, MiB |\n|---|---|---|---|---|---|---|"
    )
    for model, job in every:
        for way, (rows, ratios) in compared(model, job, asked.steps, asked.rounds).items():
            spread = f"{np.median(ratios):.2f} | {ratios.min():.2f} to {ratios.max():.2f}"
            print(f"| {model} | {job} | {way} | {rows} | {spread} | {peaks[model, job, way]:,.0f} |", flush=True)


def compared(model: str, job: str, steps: int, rounds: int) -> dict[str, tuple[int, np.ndarray]]:
    """By way its denoiser rows and time ratios, in rounds of changing order, once all are seen to find the same."""
    ways = JOBS[job]
    works = {way: Work.of(model, steps) for way in ways}
    results = {way: ways[way](work) for way, work in works.items()}
    for way, found in results.items():
        np.testing.assert_allclose(found, results["neuroscope"], rtol=0, atol=TOLERANCE * np.abs(found).max(), err_msg=way)
    costs = defaultdict(list)
    for number in range(rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            with metered(works[way].pipe.unet) as meter:
                ways[way](works[way])
                costs[way].append(meter.cost)
    seconds = {way: np.array([cost.seconds for cost in costs[way]]) for way in ways}
    return {way: (costs[way][0].rows, seconds[way] / seconds["neuroscope"]) for way in ways}


def peak(model: str, job: str, way: str, steps: int) -> float:
    return in_own_process("benchmarks.peers", f"measure({model!r}, {job!r}, {way!r}, {steps})")


def measure(model: str, job: str, way: str, steps: int) -> float:
    """The peak memory of this process after one job."""
    JOBS[job][way](Work.of(model, steps))
    return peak_memory()


if __name__ == "__main__":
    main()
