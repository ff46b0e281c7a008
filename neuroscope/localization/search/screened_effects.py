"""The screen of a search: each layer's effect on single predictions of full and of truncated runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from neuroscope.core.results.effects import Effects
from neuroscope.generation.experiment import ImageKey
from neuroscope.generation.metering import Meter
from neuroscope.generation.patch_runner import PatchRunner
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.localization.screening.screen import targeted_steps
from neuroscope.localization.screening.teacher_forced import forced_shares
from neuroscope.localization.search.control_variates import ControlVariates
from neuroscope.localization.search.settings import SETTINGS
from neuroscope.localization.search.state import parts_of

#: Where in the schedule full runs are screened: all of them at the first place, the first ones at the second too.
_PLACES = (SETTINGS.early, SETTINGS.late)


class ScreenedEffects:
    """Each layer's share of the total effect on single predictions (see `TeacherForced`), on more and more images in a given order.

    Args:
        runner: makes the runs.
        meter: counts their NFE.
        order: the images.

    Attributes:
        order: the images; `reorder` changes it.
        run_nfe: the cost of a run, once one was made.
        own_nfe: the cost of forced calls and of truncated runs, and of full runs that were made again.
    """

    def __init__(self, runner: PatchRunner, meter: Meter, order: Sequence[ImageKey]) -> None:
        self._runner = runner
        self._forcing = TeacherForcing(runner.experiment.graph)
        self._meter = meter
        self._layers = np.array(runner.experiment.graph.sites.layers)
        self._full_runs: dict[ImageKey, np.ndarray] = {}
        self._early: dict[ImageKey, np.ndarray] = {}
        self._begun: dict[ImageKey, Sequence[StepInput]] = {}
        self._beginning = 1.0
        self.order = list(order)
        self.run_nfe = 0.0
        self.own_nfe = 0.0

    @property
    def nfe(self) -> float:
        """The cost of the search so far, that of measured runs included."""
        return self._meter.cost.nfe + self._forcing.nfe

    @property
    def images(self) -> int:
        """How many images were screened."""
        return len(self._early)

    @property
    def shares(self) -> Float[np.ndarray, "image layer"]:
        """The shares on images with full runs, each the mean over its recorded steps."""
        return np.stack(list(self._full_runs.values()))

    def begin(self, images: int) -> None:
        """Makes the unchanged runs of the next images, and their targets, so that the cost of a run is known.

        `screen_full_runs` goes on with them.
        """
        before, scored = self.nfe, len(self._runner.measured.scores)
        self._begun = dict(self._runner.record_steps(self._unseen[:images], _PLACES, targets=True))
        self.run_nfe = (self.nfe - before) / (2 * len(self._begun))
        self._count_again(2 * len(self._begun), scored)
        early = next(iter(self._begun.values()))[0]
        self._beginning = (early.step + 1) / early.steps

    def screen_full_runs(self, images: int, *, late: bool = True) -> None:
        """Screens all layers on the next images' unchanged runs, at one step or, with `late`, the first ones at two."""
        image_keys, scored = self._unseen[:images], len(self._runner.measured.scores)
        if further := [image_key for image_key in image_keys if image_key not in self._begun]:
            self._begun |= self._runner.record_steps(further, _PLACES)
            self._count_again(len(further), scored)
        done = len(self._full_runs)
        steps = {key: self._begun.pop(key)[: self.steps_screened(done + number, late)] for number, key in enumerate(image_keys)}
        for image_key, shares in zip(image_keys, self._score(steps, self._layers.tolist()), strict=True):
            self._full_runs[image_key] = shares.mean(axis=0)
            self._early[image_key] = shares[0]

    def steps_screened(self, image: int, late: bool) -> int:
        """At how many steps of its full run an image is screened, by its number in the order of screening."""
        return len(_PLACES) if late and image < SETTINGS.late_images else 1

    def _count_again(self, runs: int, scored: int) -> None:
        """Counts those of some runs that were made although their scores were known.

        Args:
            runs: how many were made.
            scored: how many scores were known before.
        """
        self.own_nfe += self.run_nfe * (runs - (len(self._runner.measured.scores) - scored))

    def screen_truncated_runs(self, images: int, layers: Sequence[int]) -> None:
        """Screens some layers on further images, whose runs end after one recorded step."""
        image_keys, before = self._unseen[:images], self.nfe
        recorded = self._runner.record_steps(image_keys, (SETTINGS.early,), stop_after=True)
        self.own_nfe += self.nfe - before
        for image_key, (shares,) in zip(image_keys, self._score(recorded, layers), strict=True):
            row = np.full(len(self._layers), np.nan)
            row[np.searchsorted(self._layers, layers)] = shares
            self._early[image_key] = row

    def reorder(self, order: Sequence[ImageKey]) -> None:
        """Goes on in another order, and drops the images that are not in it."""
        self.order = list(order)
        for seen in (self._full_runs, self._early):
            for image_key in set(seen) - set(order):
                del seen[image_key]

    def nfe_of_screening(self, steps: int = 1) -> float:
        """An upper bound of the cost of screening so many steps of a run: the source, the target and each layer."""
        return steps * (2.0 + len(self._layers))

    def nfe_of_truncated_run(self, layers: int) -> float:
        """An upper bound of the cost of screening so many layers on a truncated run, the run included."""
        return self._beginning * self.run_nfe + 2 + layers

    def parts(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """The part that each of these layers has in the effect of all of them."""
        return parts_of(self.shares.mean(axis=0), np.searchsorted(self._layers, layers))

    def control_variates(self, effects: Effects) -> ControlVariates:
        """The effects of single layers where they were measured, beside the screen's predictions of them on all screened images."""
        values = self.in_order(effects)
        numbers = np.searchsorted(self._layers, [each.layers[0] for each in effects.patches])
        predicted = np.full(values.shape, np.nan)
        changes = self._ordered(effects, effects.total[None].numpy())
        total = changes[~np.isnan(changes)].sum() / max(1, int((~np.isnan(changes)).sum()))
        for image_key, shares in self._early.items():
            predicted[:, self.order.index(image_key)] = total * shares[numbers]
        return ControlVariates(values, predicted)

    def in_order(self, effects: Effects) -> Float[np.ndarray, "patch image"]:
        """The effects in the order of the images; NaN where one was not measured."""
        return self._ordered(effects, effects.values.numpy())

    def _ordered(self, effects: Effects, values: Float[np.ndarray, "patch prompt seed"]) -> Float[np.ndarray, "patch image"]:
        pairs, seeds = zip(*self.order, strict=True)
        return values[:, pairs, [effects.seeds.index(seed) for seed in seeds]]

    @property
    def _unseen(self) -> list[ImageKey]:
        return [image_key for image_key in self.order if image_key not in self._early]

    def _score(self, recorded: Mapping[ImageKey, Sequence[StepInput]], layers: Sequence[int]) -> list[np.ndarray]:
        """The shares of each image, as [step, layer]; 0 where there is no total effect."""
        runner, before = self._runner, self.nfe
        self._forcing.batch_size = runner.sweep.fits
        places = [(image_key, step) for image_key, steps in recorded.items() for step in steps]
        shares = iter(forced_shares(runner.spec.roles, self._forcing, targeted_steps(runner, places), layers=layers))
        found = [np.nan_to_num([next(shares) for _ in steps]) for steps in recorded.values()]
        self.own_nfe += self.nfe - before
        return found


def by_image(values: Float[np.ndarray, "image"], order: Sequence[ImageKey], effects: Effects) -> Float[np.ndarray, "prompt seed"]:
    """The inverse of `ScreenedEffects.in_order` for one patch."""
    table = np.full((len(effects.prompts), len(effects.seeds)), np.nan)
    for value, (pair, seed) in zip(values, order, strict=True):
        table[pair, effects.seeds.index(seed)] = value
    return table
