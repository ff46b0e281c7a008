"""How often each method finds what is planted, over families and kinds of plants.

python -m benchmarks.planted            (all; add families or plants to do a part, such as `sdxl layer`; --seed N for other plants)
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from tqdm.auto import tqdm

import neuroscope as ns
from neuroscope.core.artifacts import write_beside
from neuroscope.testbed import FAMILIES, PLANTS, Planted, build, planted, verify
from neuroscope.testbed.construction.plants import REWRITING

#: What a method cannot find, because of what it asks.
BY_NATURE = {
    ("LOCOGEN, window 1", "redundant"): "taking one of two sufficient layers out changes nothing; search sets, or ask for sufficiency",
    ("LOCOGEN, window 2", "apart"): "no window of adjacent layers holds both; search sets",
    ("LOCOGEN, window 2", "redundant"): "no window of adjacent layers holds both; search sets, or ask for sufficiency",
    ("LOCOGEN, sufficiency", "both"): "putting in one of two needed layers changes nothing; ask for necessity, or search sets",
    ("LOCOGEN, sets", "prompt"): "one set serves all prompts, so it holds every prompt's layer; windows show each prompt's own",
    ("tracing", "nothing"): "its noise is none of the stated prompts, so that layers which cannot tell those apart still hear it",
    ("tracing", "prompt"): "as on nothing: other layers hear its noise too",
    ("tracing", "pooled"): "it restores layers alone; the noise on the pooled text stays",
    ("tracing", "schedule"): "as on nothing: where the plant moves the image little, what other layers hear of the noise moves it more",
    ("tracing", "redundant"): "its noise stays in the pooled text and the other layer, so that one layer may bring back too little to show",
    ("tracing", "both"): "it restores one of two needed layers; search sets with LOCOGEN",
    ("rankings", "nothing"): "a ranking of activations always names a layer; here it ranks rounding errors",
    ("rankings", "pooled"): "they rank keys and values, and none of them carries it",
    ("rankings", "prompt"): "they average over prompts; record each prompt apart",
    **dict.fromkeys(
        [("WeightedNorm", plant) for plant in ("layer", "pair", "apart", "schedule", "decoy")],
        "it ranks by the size of activations, which other layers may have more of",
    ),
    ("Auroc", "neurons"): "with exact plants every difference is perfect in its order, however small",
}


def reason(method: str, plant: str) -> str | None:
    """Why a method misses a plant by nature; None where it should hit."""
    kinds = ("rankings",) if method in {type(each).__name__ for each in RANKINGS} else ()
    return next((found for name in (method, *kinds) if (found := BY_NATURE.get((name, plant)))), None)


@dataclass(frozen=True)
class Method:
    """A way to score layers: its name and the scores of a model, None where it has none."""

    name: str
    scores: Callable[[ns.HookGraph, Planted], ns.LayerScores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="families and plants; by default all, families whose blocks rewrite the text left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a table (CSV) that keeps finished plants; a run that was stopped goes on from it")
    asked = parser.parse_args()
    families = [name for name in FAMILIES if name in asked.only] or [name for name in FAMILIES if name not in REWRITING]
    plants = [name for name in PLANTS if name in asked.only] or list(PLANTS)
    table = pd.read_csv(asked.output) if asked.output and asked.output.exists() else pd.DataFrame(columns=["family", "plant", "seed"])
    for family, plant in tqdm(list(itertools.product(families, plants))):
        if ((table["family"] == family) & (table["plant"] == plant) & (table["seed"] == asked.seed)).any():
            continue
        table = pd.concat([table, pd.DataFrame(battery(family, plant, asked.seed))], ignore_index=True)
        if asked.output:
            write_beside(asked.output, table.to_csv(index=False).encode())
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
    place = {"family": family, "plant": plant, "seed": seed}
    for method in METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            scores = method.scores(graph, truth)
        rows = scores.cost.nfe if scores.cost else 0
        yield place | {"method": method.name, "rows": rows} | judge(scores, truth)
    if truth.neurons or truth.decoy_neurons:
        yield from neurons(graph, truth, place)


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


def neurons(graph: ns.HookGraph, truth: Planted, place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The share of planted neurons among each ranking's first k, where k are planted; of decoys, which nothing reads, likewise."""
    column, wanted = ("precision", truth.neurons) if truth.neurons else ("fooled", truth.decoy_neurons)
    count = sum(map(len, wanted.values()))
    recording = ns.record(graph, truth.concept, graph.sites.where(role="value"), "all", keep_samples=True, quiet=True)
    for method in RANKINGS:
        top = ns.score(recording, method).top(count)
        found = sum(len(set(top.get(path, ())) & set(chosen)) for path, chosen in wanted.items())
        yield place | {"method": f"{type(method).__name__}, neurons", column: found / count}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By method and plant: hits of how many models; the means of overlap and AUROC, and what rankings of neurons found."""
    hits = table.dropna(subset="hit").groupby(["method", "plant"], sort=False)["hit"]
    cells = hits.agg(lambda each: f"{each.sum():.0f}/{len(each)}").unstack("plant")
    means = table.dropna(subset="hit").groupby("method", sort=False)[["overlap", "auroc"]].mean().round(2)
    shares = table.reindex(columns=["precision", "fooled"]).groupby(table["method"], sort=False).mean().dropna(how="all").round(2)
    named = shares.rename(columns={"precision": "precision at k", "fooled": "decoys at k"})
    return cells.join(means).join(named, how="outer").reindex(list(dict.fromkeys(table["method"])))


def _locogen(**options: Any) -> Callable[[ns.HookGraph, Planted], ns.LayerScores]:
    def scores(graph: ns.HookGraph, truth: Planted) -> ns.LayerScores:
        return _localized(graph, truth, ns.LocoGen(**options), options.get("patch", "necessity"))

    return scores


def _tracing(graph: ns.HookGraph, truth: Planted) -> ns.LayerScores:
    return _localized(graph, truth, ns.CausalTracing(), "sufficiency")


def _localized(graph: ns.HookGraph, truth: Planted, method: ns.Localization, asks: str) -> ns.LayerScores:
    """The plant says from which share on an image shows the concept; to take it out, what remains must be less."""
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
    Method("LOCOGEN, sufficiency", _locogen(direction="sufficiency")),
    Method("LOCOGEN, sets", _locogen(search="sets", enough=0.95)),
    Method("tracing", _tracing),
    *(Method(type(method).__name__, _ranked(method)) for method in RANKINGS),
)

if __name__ == "__main__":
    main()
