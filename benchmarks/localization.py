"""Cheap localisation against the exhaustive sweep: the same layer, for what share of its rows, and how sure.

python -m benchmarks.localization               (all pairs; add words to do a part, such as `sdxl` or `sd1-natural style`)
python -m benchmarks.localization --calibrate 20    (stated confidence against hits on plants of so many fresh seeds)
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import neuroscope as ns
from benchmarks.layers import CONCEPTS
from neuroscope.core.artifacts import write_beside
from neuroscope.core.results.effects import Patch
from neuroscope.testbed import FAMILIES, PLANTS, build, planted
from neuroscope.testbed.construction.plants import REWRITING

#: Trained models, and how their images are measured.
TRAINED = (("sd1-natural", "share"), ("sd1-natural", "reader"), ("sd1", "reader"))
#: Exact plants do not care about the number of steps; the plants of the schedule bring their own.
STEPS = {"sdxl": 5}
BUDGETS = {"sdxl": 1 / 40}
PICTURES = 32
#: The share of the total effect from which a layer counts as found; layers closer than a hundredth of it are as good.
FOUND, TIE = 0.1, 0.01


@dataclass(frozen=True)
class Pair:
    """A model, a concept and how its images are measured."""

    name: str
    graph: ns.HookGraph
    concept: ns.Concept
    metric: Any
    seeds: range
    pairs: int
    budget: float
    generation: dict[str, Any]

    def localized(self, method: ns.Localization, seeds: range | None = None) -> ns.LayerScores:
        """A method's scores, on all images or on those of other seeds."""
        options = {"pairs": self.pairs, "keep_images": 0, "quiet": True} | self.generation
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ns.localize(self.graph, self.concept, method, self.metric, seeds or self.seeds, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "only", nargs="*", help="a pair, or words that its name must hold, such as a model, a plant, an attribute; by default all"
    )
    parser.add_argument("--calibrate", type=int, metavar="SEEDS", help="so many fresh seeds of each plant")
    parser.add_argument(
        "--output", type=Path, help="a folder that keeps sweeps and rows of finished methods; runs that share it go on from each other"
    )
    asked = parser.parse_args()
    wanted = [name for name in names(asked.calibrate) if set(asked.only) <= {name, *name.replace(" ", "/").split("/")}]
    compare = partial(compared, methods=CALIBRATED, images=16, steps=4) if asked.calibrate else partial(compared, methods=METHODS)
    with tempfile.TemporaryDirectory() as folder:
        table = pd.concat([compare(name, folder=asked.output or Path(folder)) for name in tqdm(wanted)])
    print((calibration if asked.calibrate else summary)(table).to_string())


def names(seeds: int | None = None) -> list[str]:
    """All pairs by name: FAMILY/PLANT/SEED, or MODEL ATTRIBUTE METRIC for trained models."""
    if seeds:  # seeds that nothing else here uses
        return [f"{family}/{plant}/{1000 + seed}" for seed in range(seeds) for family, plant in FRESH]
    trained = [f"{model} {attribute} {metric}" for (model, metric), attribute in itertools.product(TRAINED, CONCEPTS)]
    pooled = [name for name in FAMILIES if name.startswith(("sdxl", "if"))]
    families = [name for name in FAMILIES if name not in REWRITING]  # most methods here need contexts that no block rewrites
    built = [
        f"{family}/{plant}/0" for family in families for plant in PLANTS if plant != "relayed" and (plant != "pooled" or family in pooled)
    ]
    return sorted([*built, *trained], key=lambda name: name.startswith("sdxl"))


def opened(name: str, images: int = PICTURES, steps: int = 10) -> Pair:
    """The pair of a name."""
    if "/" not in name:
        model, attribute, metric = name.split(" ", 2)
        concept, reader = CONCEPTS[attribute]
        graph = ns.HookGraph(ns.testbed.load(model))
        return Pair(
            name, graph, concept, reader if metric == "reader" else ns.LatentShare(), range(images // 8), 8, 1 / 20, ns.testbed.GENERATION
        )
    family, plant, seed = name.split("/")
    pipe = build(family, plant, int(seed))
    truth = planted(pipe)
    metric = ns.LatentShare() if truth.shown_from is None else ns.Flipped(1 - truth.shown_from)
    steps = truth.generation["num_inference_steps"] if plant == "schedule" else STEPS.get(family, steps)
    generation = truth.generation | {"num_inference_steps": steps}
    return Pair(name, ns.HookGraph(pipe), truth.concept, metric, range(images // 4), 4, BUDGETS.get(family, 1 / 20), generation)


def compared(name: str, methods: Methods, folder: Path, **options: Any) -> pd.DataFrame:
    """One row a method: whether it names the exhaustive sweep's layer, its share of the rows, and its rank correlation."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (name.replace("/", "-").replace(" ", "-") + ".csv")
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["method"])
    missing = [label for label in methods if label not in set(table["method"])]
    if missing:
        pair = opened(name, **options)
        exhaustive = swept(pair, file.with_suffix(".safetensors"))
    for label in missing:
        method, first_seed = methods[label]
        method = method if isinstance(method, ns.Localization) else method(pair)
        scores = pair.localized(method, range(1) if first_seed else None)
        row = {"pair": name, "method": label, "rows": scores.cost.nfe / exhaustive.cost.nfe} | judged(scores, exhaustive)
        table = pd.concat([table, pd.DataFrame([row])])
        write_beside(file, table.to_csv(index=False).encode())
    return table


def swept(pair: Pair, file: Path) -> ns.LayerScores:
    """The exhaustive sweep's scores, made once."""
    return ns.load(file, ns.LayerScores) if file.exists() else ns.load(ns.save(pair.localized(ns.LocoGen()), file), ns.LayerScores)


def judged(scores: ns.LayerScores, exhaustive: ns.LayerScores) -> dict[str, Any]:
    """What scores name, against the sweep's; what was said of it; and whether they order all layers as the sweep does."""
    sure = scores.confidence.probability if scores.confidence else np.nan
    agreement = exhaustive.agreement(scores) if answer(exhaustive) is not None else np.nan
    return {"sure": sure, "agreement": agreement} | named(answer(scores), exhaustive)


def named(mine: int | None, exhaustive: ns.LayerScores) -> dict[str, Any]:
    """Whether a layer is the sweep's, or as good, or not told apart from it; and how often the sweep would name its own again."""
    theirs = answer(exhaustive)
    behind = np.inf if mine is None or theirs is None else max(exhaustive.scores) - exhaustive.scores[exhaustive.layers.index(mine)]
    same = mine == theirs
    good = same or behind <= TIE * exhaustive.effects.total_mean()
    return {
        "same": same,
        "as good": good,
        "not told apart": good or (behind < np.inf and not is_told_apart(exhaustive, mine, theirs)),
        "said": mine,
        "true": theirs,
        "sweep again": redrawn(exhaustive),
    }


def is_told_apart(exhaustive: ns.LayerScores, one: int, other: int) -> bool:
    """Whether the sweep's own images tell two of its layers apart: 0 is outside of the bootstrap interval of their difference."""
    effects = exhaustive.effects
    numbers = [[each.layers for each in effects.patches].index((layer,)) for layer in (other, one)]
    difference = effects.values[numbers[0]] - effects.values[numbers[1]]
    pair = replace(effects, patches=(Patch((one,)), Patch((other,))), values=torch.stack([difference, -difference]))
    return any(pair.is_above_zero(patch) for patch in pair.patches)


def redrawn(exhaustive: ns.LayerScores, draws: int = 1000) -> float:
    """How often the sweep itself would name the same layer with other prompts and seeds, by drawing its own anew."""
    if answer(exhaustive) is None:
        return 1.0
    single = [number for number, patch in enumerate(exhaustive.effects.patches) if len(patch.layers) == 1]
    values = exhaustive.effects.values.numpy()[single]
    rng = np.random.default_rng(0)
    weights = [rng.multinomial(count, np.full(count, 1 / count), size=draws) for count in values.shape[1:]]
    means = np.einsum("lps,dp,ds->dl", values, *weights)
    named = np.array([exhaustive.effects.patches[number].layers[0] for number in single])[means.argmax(axis=1)]
    return float((named == answer(exhaustive)).mean())


def answer(scores: ns.LayerScores) -> int | None:
    """The layer that scores name; None where they say that there is none."""
    whole = 1.0 if scores.effects.relative else scores.effects.total_mean()
    return scores.top(1)[0] if max(scores.scores) >= FOUND * whole > 0 else None


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By method: on how many pairs it names the same layer, or one as good; its share of the rows; and its rank correlation.

    The last row is the sweep itself: how often it would name its own layer again with other prompts and seeds.
    """
    by_method = table.groupby("method", sort=False)
    natural = table[table["pair"].str.startswith("sd1-natural")].groupby("method", sort=False)["agreement"]
    shares = {f"rows, {part}": _of(table, sdxl).groupby("method")["rows"].median() for part, sdxl in (("16 to 23", False), ("70", True))}
    found = pd.DataFrame(
        {
            "pairs": by_method.size(),
            **{name: by_method[name].mean().round(3) for name in ("same", "as good", "not told apart")},
            "wrong but 95 % sure": by_method.apply(lambda rows: int((~rows["not told apart"].astype(bool) & (rows["sure"] >= 0.95)).sum())),
            **{name: (1 / share).round(1).map("1/{}".format) for name, share in shares.items()},
            "most rows": by_method["rows"].max().round(4),
            "natural: rank correlation": natural.apply(_with_interval),
        }
    )
    pairs = table.drop_duplicates("pair")
    return pd.concat(
        [found, pd.DataFrame({"pairs": len(pairs), "same": pairs["sweep again"].mean().round(3)}, index=["all windows, again"])]
    )


def _of(table: pd.DataFrame, sdxl: bool) -> pd.DataFrame:
    return table[table["pair"].str.startswith("sdxl") == sdxl]


def _with_interval(values: pd.Series) -> str:
    """The mean over pairs, and its bootstrap interval."""
    kept = values.dropna().to_numpy()
    draws = np.random.default_rng(0).choice(kept, (1000, len(kept))).mean(axis=1)
    return "{:.2f} [{:.2f}, {:.2f}]".format(kept.mean(), *np.quantile(draws, [0.025, 0.975]))


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """By stated confidence: how often it was so."""
    bands = pd.cut(table["sure"], [-0.01, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
    groups = table.assign(stated=table["sure"]).groupby(["method", bands], observed=True)
    means = groups[["stated", "same", "as good", "not told apart", "rows"]].mean().astype(float).round(3)
    return means.assign(plants=groups.size())


def _auto(pair: Pair) -> ns.Localization:
    return ns.LocoGen(search="auto", budget=pair.budget)


Methods = Mapping[str, tuple[ns.Localization | Callable[[Pair], ns.Localization], bool]]
#: Each method, or what makes it for a pair; and whether it runs on the first seed alone.
METHODS: Methods = {
    "auto, 1/20 or 1/40": (_auto, False),
    "teacher-forced": (ns.TeacherForced(steps=2, fidelity=0), True),
    "gradient": (ns.AttributionPatching(samples=1, steps=2, fidelity=0), True),
    "gradient, integrated": (ns.AttributionPatching(steps=2, fidelity=0), True),
    "gradient, recomputed": (ns.AttributionPatching(samples=1, recomputed=True, steps=2, fidelity=0), True),
    "attention contribution": (ns.AttentionContribution(steps=2, fidelity=0), True),
    "attention, against other": (ns.AttentionContribution(against="other", steps=2, fidelity=0), True),
    "racing": (ns.Racing(), False),
}
#: What is asked of each fresh plant.
CALIBRATED: Methods = {f"auto, {budget}": (ns.LocoGen(search="auto", budget=budget), False) for budget in (0.05, 0.1, 0.2)}
FRESH = tuple(itertools.product(("sd1", "if-1"), ("layer", "pair", "apart", "redundant", "both", "schedule", "neurons", "prompt")))

if __name__ == "__main__":
    main()
