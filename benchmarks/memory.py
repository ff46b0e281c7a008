"""Peak memory: listing SDXL's sites, ranking on SD-v1's real size, and ranking 10,000 prompts. Each in a process of its own.

Fails where a bound is broken: 2 GiB for the sites, 6 GiB for ranking, and no more for many prompts than for few.

python -m benchmarks.memory
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import neuroscope as ns
from benchmarks import topologies
from benchmarks.models import stable_diffusion_v1
from benchmarks.own_process import in_own_process, peak_memory
from benchmarks.ranking import stipple

OPTIONS = {"height": 512, "width": 512, "num_inference_steps": 1, "guidance_scale": 7.5}


def main() -> None:
    print("| what | peak memory, MiB |")
    print("|---|---|")
    peaks = {}
    for name in JOBS:
        peaks[name] = peak_of(name)
        print(f"| {name} | {peaks[name]:,.0f} |", flush=True)
    check(peaks)


def peak_of(name: str) -> float:
    """The peak memory of a process that runs one job, MiB."""
    return in_own_process("benchmarks.memory", f"measure({name!r})")


def check(peaks: Mapping[str, float]) -> None:
    """Raises AssertionError for a job above its bound."""
    for name, peak in peaks.items():
        if peak > BOUNDS.get(name, float("inf")):
            raise AssertionError(f"{name}: {peak:,.0f} MiB, and {BOUNDS[name]:,} are allowed")
    few, many = (peaks.get(name, 0.0) for name in (FEW, MANY))
    if many > few + PROMPTS_MAY_ADD:
        raise AssertionError(f"{MANY}: {many:,.0f} MiB, against {few:,.0f} for 64 prompts")


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


SITES = "SDXL's real size: listing the sites, without weights"
KEYS = "SD-v1's real size: ranking keys and values, 64 prompts"
ALL = "SD-v1's real size: ranking all other sites, 8 prompts, 512×512 pixels"
FEW = "bundled model: ranking keys and values, 64 prompts"
MANY = "bundled model: ranking keys and values, 10,000 prompts"
BOUNDS = {SITES: 2048, KEYS: 6144, ALL: 6144}  # MiB
PROMPTS_MAY_ADD = 32

JOBS: dict[str, Callable[[], None]] = {
    "importing neuroscope": _start,
    SITES: _sites,
    "SD-v1's real size: loading": _load,
    KEYS: _rank_keys_and_values,
    ALL: _rank_all,
    FEW: _rank_prompts(64),
    MANY: _rank_prompts(10_000),
}

if __name__ == "__main__":
    main()
