"""What a mask costs at inference: the time of a masked generation over a bare one, in pairs within one run.

python -m benchmarks.masking
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import scipy.stats
import torch

import neuroscope as ns
from benchmarks.models import stable_diffusion_v1

PAIRS, STEPS, SIZE = 30, 2, 128


def main() -> None:
    graph = ns.HookGraph(stable_diffusion_v1())
    sites = graph.sites.where(layer=[8, 9], text_only=True)
    mask = ns.NeuronMask(ns.Neurons.at(sites, {site.path: range(100) for site in sites}))

    def seconds(change: ns.NeuronMask | None) -> float:
        with graph.apply(change) if change else nullcontext():
            start = time.perf_counter()
            graph.pipe(
                "a red circle",
                num_inference_steps=STEPS,
                height=SIZE,
                width=SIZE,
                output_type="latent",
                generator=torch.Generator().manual_seed(0),
            )
            return time.perf_counter() - start

    ratios = paired_ratios(lambda: seconds(mask), lambda: seconds(None))
    middle = scipy.stats.bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
    print(f"{graph}\n{mask.neurons}; {STEPS} steps with guidance, {SIZE}×{SIZE} pixels, {PAIRS} pairs after a warm-up")
    print(
        f"masked over bare generation: median {np.median(ratios):.3f}, its 95 % interval {middle.low:.3f} to {middle.high:.3f}, "
        f"single pairs {min(ratios):.3f} to {max(ratios):.3f} (target 1.02)"
    )


def paired_ratios(first: Callable[[], float], second: Callable[[], float]) -> list[float]:
    """Time ratios of the two, measured one after the other in changing order, after one warm-up of each."""
    first(), second()
    ratios = []
    for pair in range(PAIRS):
        if pair % 2:
            below, above = second(), first()
        else:
            above, below = first(), second()
        ratios.append(above / below)
    return ratios


if __name__ == "__main__":
    main()
