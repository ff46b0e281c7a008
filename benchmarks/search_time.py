"""Whether a search's time falls with its NFE: `search="auto"` against all windows, on 8 pairs and 4 seeds of the bundled model.

OMP_NUM_THREADS=1 python -m benchmarks.search_time

All windows are made one pair at a time, with a search of all pairs before or after each, so that both see the same machine.
CPU time is this process's; the elapsed time is that of whatever else runs as well.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import neuroscope as ns
from benchmarks.layers import CONCEPTS
from neuroscope.core.errors import counted

SEEDS, PAIRS = range(4), 8


@dataclass(frozen=True)
class Spent:
    """What a run took: NFE, and seconds of this process and of the clock."""

    nfe: float
    cpu: float
    elapsed: float


def main() -> None:
    asked = _asked()
    torch.set_num_threads(asked.threads)
    concept, reader = CONCEPTS[asked.attribute]
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    options = {"metric": ns.LatentShare() if asked.metric == "share" else reader, "batch_size": asked.batch_size}
    method = ns.LocoGen(search="auto", budget=asked.budget)
    warmed = spent(graph, concept, method, **options)
    print(f"{graph}\n{asked.attribute}, {options}, {method}; {counted(asked.threads, 'thread')}; first search {warmed}", flush=True)
    rounds = []
    for turn in range(asked.rounds):
        pair = _in_turn(turn, graph, concept, method, options)
        rounds.append(pair)
        print(f"search {pair[0]}\nall windows, pair {turn % PAIRS + 1} {pair[1]}", flush=True)
    print(report(rounds))


def _in_turn(turn: int, graph: ns.HookGraph, concept: ns.Concept, method: ns.Localization, options: dict[str, Any]) -> tuple[Spent, Spent]:
    """A search and all windows of one pair, in changing order."""
    part = _one_pair(concept, turn % PAIRS)
    if turn % 2:
        windows = spent(graph, part, ns.LocoGen(), **options)
        return spent(graph, concept, method, **options), windows
    return spent(graph, concept, method, **options), spent(graph, part, ns.LocoGen(), **options)


def _one_pair(concept: ns.Concept, number: int) -> ns.Concept:
    """The concept with one of the pairs that `localize` chooses."""
    chosen = number * len(concept.present) // PAIRS
    return replace(concept, present=(concept.present[chosen],), absent=(concept.absent[chosen],))


def spent(graph: ns.HookGraph, concept: ns.Concept, method: ns.Localization, metric: Any, batch_size: int | None) -> Spent:
    """What a localisation takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is found is not asked here
        elapsed, cpu = time.perf_counter(), time.process_time()
        options = {"keep_images": 0, "quiet": True, "batch_size": batch_size} | ns.testbed.GENERATION
        scores = ns.localize(graph, concept, method, metric, SEEDS, pairs=PAIRS, **options)
        return Spent(scores.cost.nfe, time.process_time() - cpu, time.perf_counter() - elapsed)


def report(rounds: Sequence[tuple[Spent, Spent]]) -> str:
    """How many times cheaper the search is in NFE and in time, and the quotient of the two."""
    nfe = _ratio([(search.nfe, windows.nfe) for search, windows in rounds])
    cpu = _ratio([(search.cpu, windows.cpu) for search, windows in rounds])
    elapsed = _ratio([(search.elapsed, windows.elapsed) for search, windows in rounds])
    single = [PAIRS * windows.cpu / search.cpu / nfe for search, windows in rounds]
    return (
        f"all windows over the search: NFE {nfe:.1f}, CPU time {cpu:.1f}, elapsed time {elapsed:.1f}\n"
        f"time ratio over NFE ratio: CPU {cpu / nfe:.2f} (single rounds {min(single):.2f} to {max(single):.2f}), "
        f"elapsed {elapsed / nfe:.2f}"
    )


def _ratio(rounds: Sequence[tuple[float, float]]) -> float:
    """The sweep's total over the search's mean."""
    search, windows = np.array(rounds).T
    return float(PAIRS * windows.mean() / search.mean())


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attribute", choices=list(CONCEPTS), default="style")
    parser.add_argument("--metric", choices=["share", "reader"], default="share")
    parser.add_argument("--budget", type=float, default=1 / 20)
    parser.add_argument("--rounds", type=int, default=PAIRS, help="searches, each beside all windows of one pair")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="by default as many as fit")
    return parser.parse_args()


if __name__ == "__main__":
    main()
