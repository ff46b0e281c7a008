"""The search for the layer that all windows of one layer would name, for a fraction of their NFE.

A screen names the few layers that look strong. These are then patched alone in real images, and all others together: where all
others together do less than one layer, none of them does more. Where they do not, they are split. Where layers are close, more
images are made, or more are screened on truncated runs; see `ControlVariates`. `policy` decides, and this loop carries it out.
"""

from __future__ import annotations

import numpy as np
import torch

from neuroscope.core.results.effects import Effects, Patch
from neuroscope.core.results.quality import MAX_SCREEN_CONFIDENCE, Confidence
from neuroscope.generation.experiment import ImageKey
from neuroscope.generation.patch_runner import PatchRunner
from neuroscope.localization.search.budget import Budget
from neuroscope.localization.search.policy import (
    Action,
    MeasureImages,
    ScreenImages,
    SplitGroup,
    Sweep,
    confidence,
    next_action,
    strongest_layers,
    tied_layers,
)
from neuroscope.localization.search.screened_effects import ScreenedEffects, by_image
from neuroscope.localization.search.settings import SETTINGS
from neuroscope.localization.search.state import SearchState, absence, with_total_effect


class AutoSearch:
    """One search.

    Args:
        runner: makes the images.
        screened: screens layers on single predictions, on images in a random order.
        budget: the share of all windows' NFE that may be spent; with 1, the search goes on until it is confident.

    Attributes:
        singles: the layers that were measured alone.
        groups: the layers that were measured together.
    """

    def __init__(self, runner: PatchRunner, screened: ScreenedEffects, budget: float) -> None:
        self._runner = runner
        self._screened = screened
        self._exhaustive = budget == 1
        self._layers = runner.experiment.graph.sites.layers
        self._budget = Budget(budget, len(self._layers), len(runner.beside), len(screened.order))
        self._blank: list[ImageKey] = []
        self._count = 0
        self._made = 0
        self.singles: list[Patch] = []
        self.groups: list[Patch] = []

    @property
    def nfe(self) -> float:
        """The cost so far."""
        return self._screened.nfe

    def run(self) -> Confidence:
        """Searches until it is confident of the best layer or the budget is spent."""
        self._screen()
        self._count = self._first_count()
        if not self._begin():
            return self._without_total_effect()
        while (probability := confidence(state := self._state())) < SETTINGS.target_confidence and (action := next_action(state)):
            self._take(action)
        return self._confidence(probability)

    def effects(self) -> Effects:
        """Each layer's effects on each image, as far as they were measured or the screen predicts them.

        Layers that were measured together share their effect by the screen. NaN stands for an image of which nothing is known.
        """
        known = self._runner.effects([*self.singles, *self.groups, *self._runner.beside])
        every = {Patch((layer,)): torch.full(known.total.shape, torch.nan, dtype=torch.float64) for layer in self._layers}
        for patch, values in zip(known.patches, known.values, strict=True):
            if patch.layers:
                parts = self._screened.parts(patch.layers)
                every |= {Patch((layer,)): values * part for layer, part in zip(patch.layers, parts, strict=True)}
            else:
                every[patch] = values
        estimates = self._screened.control_variates(self._runner.effects(self.singles)).estimates()
        for patch, expected in zip(self.singles, estimates, strict=True):
            every[patch] = torch.from_numpy(by_image(expected, self._screened.order, known))
        return Effects(tuple(every), known.prompts, known.seeds, torch.stack(list(every.values())), known.total)

    def _state(self) -> SearchState:
        """What is known now."""
        screened, run_nfe = self._screened, self._screened.run_nfe
        return SearchState(
            layers=self._layers,
            singles=tuple(self.singles),
            groups=tuple(self.groups),
            order=tuple(screened.order),
            blank=tuple(self._blank),
            count=self._count,
            effects=self._runner.effects([*self.singles, *self.groups]),
            variates=screened.control_variates(self._runner.effects(self.singles)),
            shares=screened.shares.mean(axis=0),
            screened_images=screened.images,
            exhaustive=self._exhaustive,
            nfe_left=self._nfe_left,
            run_nfe=run_nfe,
            truncated_nfe=screened.nfe_of_truncated_run(len(self.singles)),
        )

    @property
    def _nfe_left(self) -> float:
        """What is left of the budget.

        Runs that a stopped search had made before are counted as well, so that a search which goes on ends as if never stopped.
        """
        run_nfe = self._screened.run_nfe
        return self._budget.allowed * run_nfe - (self._screened.own_nfe + len(self._runner.measured.scores) * run_nfe)

    @property
    def _image_keys(self) -> list[ImageKey]:
        """The images that are measured."""
        return self._screened.order[: self._count]

    def _screen(self) -> None:
        """Screens as many images as fit the screen's part of the budget, at least one.

        The first images' unchanged runs and targets are made first: however the search goes on, it needs them.
        """
        kept, screened = self._budget.allowed >= 1 or self._budget.is_kept(), self._screened
        most = min(SETTINGS.trusted_images, len(screened.order))
        self._made = most if self._exhaustive else min(SETTINGS.fewest_images, len(screened.order))
        screened.begin(self._made)
        screening, before = screened.nfe_of_screening() / screened.run_nfe, screened.nfe
        late = kept and self._budget.is_kept(screening) and self._budget.least(2 * screening) <= self._budget.allowed
        screened.screen_full_runs(1, late=late)
        step = (screened.nfe - before) / screened.run_nfe / screened.steps_screened(0, late)
        first, *further = (1 + step * screened.steps_screened(image, late) for image in range(most))
        if more := self._budget.screened_images(first, further) - 1:
            screened.screen_full_runs(more, late=late)

    def _first_count(self) -> int:
        """On how many images to begin."""
        images = len(self._screened.order)
        if self._exhaustive:
            return min(SETTINGS.trusted_images, images)
        left = self._nfe_left / self._screened.run_nfe
        return min(self._budget.first_images(len(self._strongest()), self._sources, self._made, left), images)

    @property
    def _sources(self) -> int:
        """Of how many images the unchanged run was made."""
        return max(self._made, self._screened.images)

    def _begin(self) -> bool:
        """Measures the screen's strongest layers on the first images that have a total effect; False where none is found.

        Where the images whose targets were made have one, those of the other first images are made in the same batches as their
        patches.
        """
        if self._has_total_effect(self._made):
            self._measure_finalists()
        if not self._has_total_effect(self._count):
            self.singles, self.groups = [], []
            if not self._find_total_effect():
                return False
        if not self.singles:
            self._measure_finalists()
        return True

    def _strongest(self) -> list[int]:
        """The layers that the screen names."""
        return [self._layers[number] for number in strongest_layers(self._screened.shares)]

    def _measure_finalists(self) -> None:
        """Measures the screen's strongest layers, as many as the budget allows, and all others together."""
        finalists, missing = self._strongest(), Budget.missing_ends(self._count, self._sources, self._made)
        if not self._exhaustive:
            while len(finalists) > 1 and ((1 + len(finalists)) * self._count + missing) * self._screened.run_nfe > self._nfe_left:
                finalists.pop()
        self.singles = [Patch((layer,)) for layer in finalists]
        rest = tuple(layer for layer in self._layers if layer not in finalists)
        self.groups = [Patch(rest)] if rest else []
        self._runner.measure([*self.singles, *self.groups, *self._runner.beside], self._image_keys)

    def _take(self, action: Action) -> None:
        """Carries out a decision."""
        match action:
            case Sweep():
                self._sweep()
            case SplitGroup(group, halves, image_keys):
                self.groups.remove(group)
                self.groups += [half for half in halves if len(half.layers) > 1]
                self.singles += [half for half in halves if len(half.layers) == 1]
                self._runner.measure(halves, image_keys)
            case MeasureImages(patches, images):
                self._count += images
                self._runner.measure(patches, self._image_keys)
            case ScreenImages(layers, images):
                self._screened.screen_truncated_runs(images, layers)

    def _sweep(self) -> None:
        """Measures every layer alone on every image."""
        self._screened.reorder([*self._screened.order, *self._blank])
        self._blank = []
        self.singles, self.groups, self._count = [Patch((layer,)) for layer in self._layers], [], len(self._screened.order)
        self._runner.measure([*self.singles, *self._runner.beside], self._image_keys)

    def _has_total_effect(self, count: int) -> bool:
        """Measures the total effect on so many images: whether it is above 0 beyond doubt, or on some and below 0 on none."""
        ends = self._runner.measure([], self._screened.order[:count])
        total = np.nan_to_num(ends.total.numpy())
        return ends.is_moved() or bool(total.min() >= 0 < total.max())

    def _find_total_effect(self) -> bool:
        """Looks for a total effect on further images, as far as the budget goes, and takes those that have it first."""
        count, screened = self._count, self._screened
        while (more := self._more_ends(count)) > 0:
            count += more
            if self._has_total_effect(count):
                break
        else:
            self._count = count
            return False
        shown = with_total_effect(self._runner.effects([]), screened.order[:count])
        self._blank = [image_key for image_key in screened.order[:count] if image_key not in shown]
        screened.reorder([*shown, *screened.order[count:]])
        if not screened.images:
            screened.screen_full_runs(1, late=self._exhaustive)
        self._count = min(self._count, len(screened.order)) if self._exhaustive else min(SETTINGS.fewest_images, len(shown))
        return True

    def _more_ends(self, count: int) -> int:
        """On how many more images the total effect may be looked for, so that the smallest search can still be paid."""
        more = min(count, len(self._screened.order) - count)
        if self._exhaustive:
            return more
        run_nfe = self._screened.run_nfe
        kept = run_nfe + self._screened.nfe_of_screening() + SETTINGS.fewest_images * (2 + self._budget.beside) * run_nfe
        return min(more, int((self._nfe_left - kept) / (2 * run_nfe)))

    def _without_total_effect(self) -> Confidence:
        """Where no image has a total effect: all windows, or the confidence that none has."""
        if self._exhaustive:
            self._sweep()
            return self._confidence(1.0)
        return self._confidence(min(MAX_SCREEN_CONFIDENCE, absence(self._count, len(self._screened.order))))

    def _confidence(self, probability: float) -> Confidence:
        measured = tuple(sorted(each.layers[0] for each in self.singles))
        of = len(self._screened.order) + len(self._blank)
        if not self.singles:
            return Confidence(probability, measured, self._count, of)
        state = self._state()
        return Confidence(probability, measured, self._count, of, state.compared_on_screen, tied_layers(state))
