"""What ranking costs: denoiser rows, and peak memory against the number of prompts.

python -m benchmarks.ranking
"""

from __future__ import annotations

import itertools

import torch

import neuroscope as ns
from benchmarks.own_process import in_own_process, peak_memory
from neuroscope.testbed.captions import STYLED, caption
from neuroscope.testbed.world import scenes

COUNTS = (64, 512, 4096)


def main() -> None:
    print(f"{'sites':22}{'prompts':>8}{'denoiser rows':>15}{'peak memory, MiB':>18}")
    for count in COUNTS:
        row = in_own_process("benchmarks.ranking", f"measure('keys and values', {count})")
        print(f"{'keys and values':22}{count:8}{row['rows']:15}{row['peak']:18.0f}")
    for count in (32, 128):
        row = in_own_process("benchmarks.ranking", f"measure('feed-forward', {count})")
        print(f"{'feed-forward, 5 steps':22}{count:8}{row['rows']:15}{row['peak']:18.0f}")


def measure(kind: str, count: int) -> dict[str, float]:
    """Records `count` prompts (half present, half absent) and counts denoiser rows and this process's peak memory."""
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    concept, rows = stipple(count), 0

    def count_rows(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal rows
        rows += len(args[0] if args else kwargs["sample"])

    graph.denoiser.register_forward_pre_hook(count_rows, with_kwargs=True)
    if kind == "keys and values":
        recording = ns.record(graph, concept, quiet=True)
    else:
        recording = ns.record(graph, concept, graph.sites.where(role="feedforward"), quiet=True, num_inference_steps=5)
    ns.score(recording, ns.Welch()).top(50)
    return {"rows": rows, "peak": peak_memory()}


def stipple(count: int) -> ns.Concept:
    """The bundled models' style with so many prompts, half with it and half without."""
    return ns.Concept("stipple", *(_prompts(style, count // 2) for style in ("stipple", "plain")))


def _prompts(style: str, count: int) -> list[str]:
    every = [(scene, template) for scene in scenes() if scene.style == style for template in STYLED]
    return [caption(scene, template) for scene, template in itertools.islice(itertools.cycle(every), count)]


if __name__ == "__main__":
    main()
