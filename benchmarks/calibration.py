"""The search's decisions on effects that are known: thousands of cases without a model.

python -m benchmarks.calibration            (stated confidence against what all windows would name, by budget and listing)

A case has a few prompts, each of which reads at a layer of its own. Layers, prompts' groups, blank prompts and noise are
drawn; prompts are listed in groups, in turn, or shuffled. Runs of images are looked up instead of made, so that what is left
of `AutoSearch` is what it decides; rows are counted as a model's would be.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from neuroscope.core.results.effects import Effects, Patch
from neuroscope.generation.experiment import ImageKey
from neuroscope.generation.patch_runner import random_order
from neuroscope.localization.search.auto import AutoSearch
from neuroscope.localization.search.screened_effects import ScreenedEffects
from neuroscope.localization.search.settings import SETTINGS

LAYERS = 16
#: How many prompts read at each of the first layers drawn; 0 is a prompt that shows nothing.
SPLITS = ((11,), (4, 7), (7, 4), (3, 3), (5, 6), (2, 9), (3, 8), (3, 3, 5), (1, 4), (4, 4), (6, 10), (5, 11), (16, 16), (12, 20))
LISTINGS = ("in groups", "in turn", "shuffled")
BUDGETS = (1 / 20, 1 / 10, 1 / 5, 1.0)
STEPS = 5
#: Differences of means up to this are ties.
TIE = 0.01


@dataclass(frozen=True, eq=False)
class Case:
    """The effect of each layer on each prompt and seed, and the total effect.

    Attributes:
        values: [layer, prompt, seed].
        full: [prompt, seed].
        scatter: of what a screen says, around the effects.
    """

    values: np.ndarray
    full: np.ndarray
    scatter: float = 0.1

    @classmethod
    def of(
        cls, split: Sequence[int], listing: str, rng: np.random.Generator, *, blank: int = 0, seeds: int = 1, noise: float = 0.0
    ) -> Case:
        """Prompts that read at layers of their own, and so many that show nothing, listed in groups, in turn or shuffled."""
        layers = rng.choice(LAYERS, len(split), replace=False)
        reads = np.array([-1] * blank + [layer for layer, count in zip(layers, split, strict=True) for _ in range(count)])
        if listing == "shuffled":
            reads = rng.permutation(reads)
        if listing == "in turn":
            turns = [np.arange(count) for count in (*([blank] if blank else []), *split)]
            reads = reads[np.argsort(np.concatenate(turns), kind="stable")]
        full = np.repeat((reads >= 0)[:, None], seeds, axis=1).astype(float)
        values = (np.arange(LAYERS)[:, None, None] == reads[:, None]) * full
        return cls(values + noise * rng.normal(size=values.shape) * full, full)

    def named(self) -> set[int]:
        """The layers that all windows name: the best, and those that are as good."""
        means = self.values.mean(axis=(1, 2))
        return {int(layer) for layer in np.flatnonzero(means >= means.max() - TIE * self.full.mean())} if means.max() > 0 else set()


@dataclass(eq=False)
class Table:
    """A runner whose runs are looked up."""

    case: Case
    made: dict[Any, np.ndarray] = field(default_factory=dict)
    nfe: float = 0.0

    @property
    def experiment(self) -> Any:
        """What the search reads of an experiment."""
        prompts, seeds = self.case.full.shape
        graph = SimpleNamespace(sites=SimpleNamespace(layers=tuple(range(LAYERS))))
        image_keys = [(pair, seed) for pair in range(prompts) for seed in range(seeds)]
        return SimpleNamespace(graph=graph, pairs=range(prompts), seeds=tuple(range(seeds)), image_keys=image_keys)

    @property
    def beside(self) -> list[Patch]:
        """No pooled text."""
        return []

    @property
    def measured(self) -> Any:
        """Of which the search counts the scores."""
        return SimpleNamespace(scores=range(sum(int(made.sum()) for made in self.made.values())))

    @property
    def cost(self) -> Any:
        """The rows of all runs that were looked up."""
        return SimpleNamespace(nfe=self.nfe)

    def measure(self, patches: Sequence[Patch], image_keys: Sequence[ImageKey]) -> Effects:
        """As `PatchRunner.measure`."""
        for patch in ("source", "target", *patches):
            self.nfe += STEPS * self._make(patch, image_keys)
        return self.effects(patches)

    def effects(self, patches: Sequence[Patch]) -> Effects:
        """As `PatchRunner.effects`: layers that change together do what they do alone, but no more than the total effect."""
        full = self._known("target", self.case.full)
        values = [self._known(patch, self.case.values[list(patch.layers)].sum(axis=0).clip(max=1.5)) for patch in patches]
        table = torch.from_numpy(np.stack(values)) if values else torch.zeros(0, *full.shape, dtype=torch.float64)
        prompts, seeds = full.shape
        return Effects(tuple(patches), tuple(map(str, range(prompts))), tuple(range(seeds)), table, torch.from_numpy(full))

    def record_steps(
        self, image_keys: Sequence[ImageKey], steps: Sequence[float], *, stop_after: bool = False, targets: bool = False
    ) -> Mapping[ImageKey, Any]:
        """As `PatchRunner.record_steps`; the frames say nothing but where they are."""
        ends = ["source", "target"] if targets else ["source"]
        self.nfe += len(image_keys) * (2 if stop_after else STEPS * len(ends))
        for end in ends if not stop_after else []:
            self._make(end, image_keys)
        return {image_key: tuple(SimpleNamespace(step=int(each * STEPS), steps=STEPS) for each in steps) for image_key in image_keys}

    def _make(self, patch: Any, image_keys: Sequence[ImageKey]) -> int:
        """Makes a patch's runs, and says how many were not there."""
        made = self.made.setdefault(patch, np.zeros(self.case.full.shape, dtype=bool))
        before = int(made.sum())
        made[tuple(np.array(image_keys).T)] = True
        return int(made.sum()) - before

    def _known(self, patch: Any, values: np.ndarray) -> np.ndarray:
        return np.where(self.made.get(patch, np.zeros(values.shape, dtype=bool)), values, np.nan)


class Looks(ScreenedEffects):
    """ScreenedEffects that see the effects, with scatter."""

    def __init__(self, table: Table, order: Sequence[ImageKey], rng: np.random.Generator) -> None:
        super().__init__(table, table, order)  # type: ignore[arg-type]
        self._table = table
        self._rng = rng

    def _score(self, followed: Mapping[ImageKey, Sequence[Any]], layers: Sequence[int]) -> list[np.ndarray]:
        case, found = self._table.case, []
        for (pair, seed), frames in followed.items():
            effects = case.values[list(layers), pair, seed] * np.ones((len(frames), 1))
            found.append(effects + case.full[pair, seed] * case.scatter * self._rng.normal(size=effects.shape))
            self.own_nfe += len(frames) * (2 + len(layers))
            self._forcing.nfe += len(frames) * (2 + len(layers))
        return found


def searched(case: Case, budget: float, seed: int = 0) -> dict[str, Any]:
    """What a search says of a case, whether that is so, and what it took."""
    table = Table(case)
    search = AutoSearch(table, Looks(table, random_order(table.experiment, seed), np.random.default_rng(seed)), budget)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        confidence = search.run()
    means = search.effects().of_layers(range(LAYERS))
    answer = {int(means.argmax())} if means.max() > 0 else set()
    truth = case.named()
    right = (set(confidence.tied) or answer) >= truth if len(truth) > 1 else answer == truth
    sweep = (LAYERS + 2) * case.full.size * STEPS
    over = search.nfe > budget * sweep
    return {
        "budget": budget,
        "sure": confidence.probability,
        "right": right,
        "rows": search.nfe / sweep,
        "overrun": over,
        "silent overrun": over and budget < 1 and not any("budget" in str(each.message) for each in said),
        "sweep": len(confidence.measured_layers) == LAYERS,
    }


def simulated(cases: int, seed: int = 0, splits: Sequence[Sequence[int]] = SPLITS) -> pd.DataFrame:
    """So many cases of each split and listing, at every budget."""
    rng, rows = np.random.default_rng(seed), []
    for split in tqdm(splits, desc="splits"):
        for listing in LISTINGS:
            for number in range(cases):
                blank, seeds, noise = (
                    int(rng.choice([0, 0, 0, 4])),
                    int(rng.choice([1, 1, 2, 8] if sum(split) < 12 else [1, 1, 2])),
                    float(rng.choice([0.0, 0.03])),
                )
                case = Case.of(split, listing, rng, blank=blank, seeds=seeds, noise=noise)
                kind = {"split": ":".join(map(str, split)), "listing": listing, "blank": blank, "seeds": seeds}
                rows += [kind | searched(case, budget, number) for budget in BUDGETS]
    return pd.DataFrame(rows)


def calibration(table: pd.DataFrame, by: Sequence[str] = ("budget",)) -> pd.DataFrame:
    """By budget: how many answers were given with 95 % or more, how many of these were right, of all, and what it took."""
    groups = table.assign(stated=table["sure"] >= SETTINGS.target_confidence).groupby(list(by), sort=False)
    sure = table[table["sure"] >= SETTINGS.target_confidence].groupby(list(by), sort=False)["right"]
    return pd.DataFrame(
        {
            "cases": groups.size(),
            "95 % sure": groups["stated"].sum(),
            "of these right": sure.mean().round(4),
            "all right": groups["right"].mean().round(3),
            "mean rows": groups["rows"].mean().round(3),
            "overrun without a warning": groups["silent overrun"].sum(),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40, help="of each split and listing")
    table = simulated(parser.parse_args().cases)
    for by in (["budget"], ["budget", "listing"], ["budget", "split"], ["budget", "blank"]):
        print(calibration(table, by).to_string(), end="\n\n")


if __name__ == "__main__":
    main()
