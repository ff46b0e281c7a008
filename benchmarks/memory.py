"""Peak memory: listing SDXL's sites, ranking on SD-v1's real size, and ranking 10,000 prompts. Each in a process of its own.

python -m benchmarks.memory
"""

from __future__ import annotations

from collections.abc import Callable

import neuroscope as ns
from benchmarks import topologies
from benchmarks.models import stable_diffusion_v1
from benchmarks.own_process import in_own_process, peak_memory
from benchmarks.ranking import stipple

OPTIONS = {"height": 512, "width": 512, "num_inference_steps": 1, "guidance_scale": 7.5}


def main() -> None:
    print("| what | peak memory, MiB |")
    print("|---|---|")
    for name in JOBS:
        print(f"| {name} | {in_own_process('benchmarks.memory', f'measure({name!r})'):,.0f} |", flush=True)


def measure(name: str) -> float:
    """Runs one job; the peak memory of this process."""
    JOBS[name]()
    return peak_memory()


def _start() -> None:
    """Imports alone, which all others hold too."""


def _sites() -> None:
    sites = ns.sites_from_config(topologies.SDXL)
    if len(sites.layers) != 70:
        raise AssertionError(sites)


def _load() -> None:
    ns.HookGraph(stable_diffusion_v1())


def _rank_keys_and_values() -> None:
    graph = ns.HookGraph(stable_diffusion_v1())
    ns.score(ns.record(graph, stipple(64), quiet=True), ns.Welch()).top(50)


def _rank_all() -> None:
    graph = ns.HookGraph(stable_diffusion_v1())
    sites = [site for site in graph.sites if not site.text_only]
    ns.score(ns.record(graph, stipple(8), sites, batch_size=1, quiet=True, **OPTIONS), ns.Welch()).top(50)


def _rank_prompts(count: int) -> Callable[[], None]:
    def rank() -> None:
        ns.score(ns.record(ns.HookGraph(ns.testbed.load("sd1")), stipple(count), quiet=True), ns.Welch()).top(50)

    return rank


JOBS: dict[str, Callable[[], None]] = {
    "importing neuroscope": _start,
    "SDXL's real size: listing the sites, without weights": _sites,
    "SD-v1's real size: loading": _load,
    "SD-v1's real size: ranking keys and values, 64 prompts": _rank_keys_and_values,
    "SD-v1's real size: ranking all other sites, 8 prompts, 512×512 pixels": _rank_all,
    "bundled model: ranking keys and values, 64 prompts": _rank_prompts(64),
    "bundled model: ranking keys and values, 10,000 prompts": _rank_prompts(10_000),
}

if __name__ == "__main__":
    main()
