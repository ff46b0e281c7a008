"""How often each method finds what is planted, over families and kinds of plants.

python -m benchmarks.planted            (all; add families or plants to do a part, such as `sdxl layer`; --seed N for other plants)
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

import neuroscope as ns
from neuroscope.testbed import FAMILIES, PLANTS, Planted, build, planted, verify

#: What a method cannot find, because of what it asks.
BY_NATURE = {
    ("LOCOGEN, window 1", "redundant"): "taking one of two sufficient layers out changes nothing; ask for sufficiency, or search sets",
    ("LOCOGEN, window 2", "apart"): "no window of adjacent layers holds both; search sets",
    ("LOCOGEN, window 2", "redundant"): "no window of adjacent layers holds both; ask for sufficiency, or search sets",
    ("LOCOGEN, sufficiency", "both"): "putting in one of two needed layers changes nothing; ask for necessity, or search sets",
    ("tracing", "schedule"): "tracing restores all steps at once",
}


@dataclass(frozen=True)
class Method:
    """A way to score layers: its name and the scores of a model, None where it has none."""

    name: str
    scores: Callable[[ns.HookGraph, Planted], ns.LayerScores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="families and plants; by default all")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    families = [name for name in FAMILIES if name in asked.only] or list(FAMILIES)
    plants = [name for name in PLANTS if name in asked.only] or list(PLANTS)
    table = pd.DataFrame([row for family in families for plant in plants for row in battery(family, plant, asked.seed)])
    print(summary(table).to_string())
    print()
    for (method, plant), reason in BY_NATURE.items():
        print(f"{method} on {plant!r}: {reason}")


def battery(family: str, plant: str, seed: int) -> Iterator[dict[str, Any]]:
    """One row a method: whether it hit, the overlap of its best window with the plant, the AUROC of its layers."""
    try:
        pipe = build(family, plant, seed)
    except ns.InvalidInput:
        return
    truth = planted(pipe)
    if not verify(pipe).holds:
        raise AssertionError(f"{family}/{plant}/{seed} does not verify")
    graph = ns.HookGraph(pipe)
    for method in METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            scores = method.scores(graph, truth)
        yield {"family": family, "plant": plant, "method": method.name} | judge(scores, truth)
    if truth.neurons:
        yield from neurons(graph, truth, {"family": family, "plant": plant})


def judge(scores: ns.LayerScores, truth: Planted) -> dict[str, Any]:
    """Whether the scores say what is planted."""
    wanted = set(truth.layers)
    best = set(scores.best.layers) if scores.effects else set(scores.top(1))
    found = {
        "nothing": lambda: not any(scores.scores) or (scores.effects is not None and "no layer stands out" in scores.verdict),
        "pooled": lambda: scores.effects is not None and scores.verdict.startswith("the pooled text carries"),
        "prompt": lambda: scores.effects is not None and "depends on the prompt" in scores.verdict and set(scores.top(2)) == wanted,
        "pair": lambda: bool(best) and best <= wanted,
        "apart": lambda: bool(best) and best <= wanted,
    }
    hit = found.get(truth.plant, lambda: bool(best & wanted) and scores.top(1)[0] in wanted and max(scores.scores) > 0)()
    overlap = len(best & wanted) / len(best | wanted) if wanted else np.nan
    return {"hit": float(hit), "overlap": overlap, "auroc": auroc(scores, wanted)}


def auroc(scores: ns.LayerScores, wanted: set[int]) -> float:
    """The chance that a planted layer scores above another, ties counted half."""
    inside = np.isin(scores.layers, list(wanted))
    if inside.all() or not inside.any():
        return np.nan
    ranks = rankdata(scores.scores)
    return (ranks[inside].sum() - inside.sum() * (inside.sum() + 1) / 2) / (inside.sum() * (~inside).sum())


def neurons(graph: ns.HookGraph, truth: Planted, place: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The share of planted neurons among each ranking's first k, where k are planted."""
    count = sum(map(len, truth.neurons.values()))
    recording = ns.record(graph, truth.concept, graph.sites.where(role="value"), "all", keep_samples=True, quiet=True)
    for method in RANKINGS:
        top = ns.score(recording, method).top(count)
        right = sum(len(set(top.get(path, ())) & set(chosen)) for path, chosen in truth.neurons.items())
        yield place | {"method": f"{type(method).__name__}, neurons", "precision": right / count}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By method and plant: hits of how many families; the mean AUROC."""
    hits = table.dropna(subset="hit").groupby(["method", "plant"], sort=False)["hit"]
    cells = hits.agg(lambda each: f"{each.sum():.0f}/{len(each)}").unstack("plant")
    means = table.dropna(subset="hit").groupby("method", sort=False)[["overlap", "auroc"]].mean().round(2)
    precision = table.get("precision", pd.Series(dtype=float)).groupby(table["method"], sort=False).mean().dropna().round(2)
    return cells.join(means).join(precision.rename("precision at k"), how="outer").reindex(list(dict.fromkeys(table["method"])))


def _locogen(**options: Any) -> Callable[[ns.HookGraph, Planted], ns.LayerScores]:
    def scores(graph: ns.HookGraph, truth: Planted) -> ns.LayerScores:
        return _localized(graph, truth, ns.LocoGen(**options), options.get("probe", "necessity"))

    return scores


def _tracing(graph: ns.HookGraph, truth: Planted) -> ns.LayerScores:
    return _localized(graph, truth, ns.CausalTracing(), "sufficiency")


def _localized(graph: ns.HookGraph, truth: Planted, method: ns.Localization, asks: str) -> ns.LayerScores:
    """The plant says from which share on a picture shows the concept; to take it out, what remains must be less."""
    shown = truth.shown_from
    metric = ns.LatentShare() if shown is None else ns.Flipped(shown if asks == "sufficiency" else 1 - shown)
    return ns.localize(graph, truth.concept, method, metric, [0], pairs=None, keep_images=0, quiet=True, **truth.generation)


def _ranked(method: ns.Attribution) -> Callable[[ns.HookGraph, Planted], ns.LayerScores]:
    def scores(graph: ns.HookGraph, truth: Planted) -> ns.LayerScores:
        recording = ns.record(graph, truth.concept, None, "all", keep_samples=True, quiet=True)
        return ns.score(recording, method).by_layer()

    return scores


RANKINGS = (ns.Welch(), ns.MeanDifference(), ns.WeightedNorm(), ns.Auroc())
METHODS = (
    Method("LOCOGEN, window 1", _locogen()),
    Method("LOCOGEN, window 2", _locogen(window=2)),
    Method("LOCOGEN, sufficiency", _locogen(probe="sufficiency")),
    Method("LOCOGEN, sets", _locogen(search="sets", enough=0.95)),
    Method("tracing", _tracing),
    *(Method(type(method).__name__, _ranked(method)) for method in RANKINGS),
)

if __name__ == "__main__":
    main()
