"""The search for the layer which all windows of one layer would name, for a fraction of their rows.

A screen says which few layers look strong. They are then swapped alone in real images, and all others together: where
all others together do less than one layer, none of them does more. Where they do not, they are split; where layers are
close, more images are made, or more are screened by the beginnings of their runs: see `ControlVariates`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from neuroscope.core.effects import Effects, Patch
from neuroscope.core.quality import MAX_SCREEN_CONFIDENCE, Confidence, p_minority, p_none, p_rank_reversal, p_tie
from neuroscope.generation.experiment import ImageKey
from neuroscope.generation.patch_runner import PatchRunner, split
from neuroscope.localization.search.budget import FEWEST, Budget
from neuroscope.localization.search.control_variates import ControlVariates
from neuroscope.localization.search.screened_effects import ScreenedEffects, by_image

TARGET_CONFIDENCE = 0.95
_FIRST, _PICTURES = 3, 4  # of the final, and for an answer that is sure
_CLOSE = 0.5  # of the strongest layer's share: what else goes to the final
_SCREEN_PART = 0.4  # of the budget
_NOTHING = 0.1  # of the total effect: less is no effect
_OUT = 0.001  # a rival that is ahead with a smaller chance gets no more images
_CLOSE_CALL = 0.1  # the chance that another layer is ahead from which the screen is asked again
_AGREEING = 0.75
_TIE, _TIED = 0.01, 0.25  # a difference, of the total effect, and the chance of its reverse: layers are not told apart


class AutoSearch:
    """One search.

    Args:
        runner: makes the images.
        glances: looks at single predictions, on images in a random order.
        budget: the share of all windows' rows that may be spent.

    Attributes:
        singles: the layers that were measured alone.
        groups: those that were measured together.
    """

    def __init__(self, runner: PatchRunner, glances: ScreenedEffects, budget: float) -> None:
        self._runner = runner
        self._whole = budget == 1
        self._layers = runner.experiment.graph.sites.layers
        self._glances = glances
        self._budget = Budget(budget, len(self._layers), len(runner.beside), len(glances.order))
        self._blank: list[ImageKey] = []
        self._count = 0
        self.singles: list[Patch] = []
        self.groups: list[Patch] = []

    @property
    def nfe(self) -> float:
        """The rows that were run so far."""
        return self._glances.nfe

    def run(self) -> Confidence:
        """Goes on until it is sure of the best layer or the budget is spent."""
        self._screen()
        self._count = self._first()
        if not self._is_moved(self._count) and not self._is_moved_further():
            return self._nothing()
        self.singles = [Patch((layer,)) for layer in self._finalists()]
        rest = tuple(each for each in self._layers if Patch((each,)) not in self.singles)
        self.groups = [Patch(rest)] if rest else []
        self._runner.measure([*self.singles, *self.groups, *self._runner.beside], self._image_keys)
        while (sure := self._sure()) < TARGET_CONFIDENCE and self._go_on():
            pass
        return self._confidence(sure)

    def effects(self) -> Effects:
        """Each layer's effects, as they were measured or as the screen foretells them.

        The effect of layers that were measured together is shared out among them by the screen.
        """
        known = self._runner.effects([*self.singles, *self.groups, *self._runner.beside])
        every = {Patch((layer,)): torch.full(known.total.shape, torch.nan, dtype=torch.float64) for layer in self._layers}
        for patch, values in zip(known.patches, known.values, strict=True):
            parts = self._glances.parts(patch.layers) if patch.layers else [1.0]
            every |= {Patch((layer,)): values * part for layer, part in zip(patch.layers, parts, strict=False)}
            every |= {} if patch.layers else {patch: values}
        for patch, expected in zip(self.singles, self._variates.estimates(), strict=True):
            every[patch] = torch.from_numpy(by_image(expected, self._order, known))
        return Effects(tuple(every), known.prompts, known.seeds, torch.stack(list(every.values())), known.total)

    @property
    def _order(self) -> list[ImageKey]:
        return self._glances.order

    @property
    def _run_nfe(self) -> float:
        return self._glances.run_nfe

    @property
    def _spent(self) -> float:
        """The rows of the budget that are gone; images that a stopped search had made before count as well, so that it ends alike."""
        return self._glances.own_nfe + len(self._runner.measured.scores) * self._run_nfe

    @property
    def _left(self) -> float:
        """The rows of the budget that are left."""
        return self._budget.allowed * self._run_nfe - self._spent

    @property
    def _image_keys(self) -> list[ImageKey]:
        """The images of the final."""
        return self._order[: self._count]

    @property
    def _is_swept(self) -> bool:
        """Whether all windows were made."""
        return len(self.singles) == len(self._layers) and not self._blank and self._count == len(self._order)

    @property
    def _absence(self) -> float:
        """How sure it is that what was seen in no image is in too few to matter."""
        return 1 - p_none(self._count, len(self._order), _NOTHING)

    def _telling(self, image_keys: Sequence[ImageKey], patches: Sequence[Patch] = ()) -> list[ImageKey]:
        """Those of some images that show a total effect, and in which all of these patches were measured."""
        effects = self._runner.effects(patches)
        shown = np.nan_to_num(effects.total.numpy()) * (~np.isnan(effects.values.numpy())).all(axis=0)
        return [(pair, seed) for pair, seed in image_keys if shown[pair, effects.seeds.index(seed)]]

    @property
    def _most(self) -> float:
        """How sure images that say the same can make it: all may be of a smaller half. Half of the prompts make it likely at most."""
        telling = self._telling(self._image_keys, [*self.singles, *self.groups])
        every = [*telling, *self._order[self._count :]]
        prompts, of = (len({pair for pair, _ in keys}) for keys in (telling, every))
        most = 1 - max(p_minority(len(telling), len(every)), p_tie(prompts, of))
        return most if 2 * prompts > of else min(MAX_SCREEN_CONFIDENCE, most)

    def _affordable(self, runs: int) -> int:
        """How many images the budget allows, with so many runs each."""
        return int(self._left / (runs * self._run_nfe))

    def _confidence(self, probability: float) -> Confidence:
        alone = tuple(sorted(each.layers[0] for each in self.singles))
        of = len(self._order) + len(self._blank)
        return Confidence(probability, alone, self._count, of, self._screened if self.singles else 0, self._tied())

    def _screen(self) -> None:
        """Looks at as many images as fit the screen's part of the budget, at least one."""
        kept = self._budget.allowed >= 1 or self._budget.is_kept()
        self._glances.begin()
        look = self._glances.nfe_of_screening() / self._run_nfe
        late = kept and self._budget.is_kept(look) and self._budget.least(2 * look) <= self._budget.allowed
        for seen in range(1, min(_PICTURES, len(self._order)) + 1):
            self._glances.screen_full_run(late=late)
            if self.nfe * (1 + 1 / seen) > _SCREEN_PART * self._budget.allowed * self._run_nfe:
                break

    def _first(self) -> int:
        """On how many images to begin the final."""
        if self._whole:
            return min(_PICTURES, len(self._order))
        finalists, screened, left = len(self._glances.strongest()), self._glances.images, self._left / self._run_nfe
        fits = [number for number in range(FEWEST, _FIRST + 1) if self._budget.final(number, finalists, screened) <= left]
        return min(max(fits, default=FEWEST), len(self._order))

    def _finalists(self) -> list[int]:
        """The strongest layers of the screen, as many as the budget allows."""
        strongest = self._glances.strongest()
        while not self._whole and len(strongest) > 1 and (1 + len(strongest)) * self._count * self._run_nfe > self._left:
            strongest.pop()
        return strongest

    def _is_moved(self, count: int) -> bool:
        """Whether the total effect shows on so many images: it is above 0 beyond doubt, or on some and below 0 on none."""
        ends = self._runner.measure([], self._order[:count])
        full = np.nan_to_num(ends.total.numpy())
        return ends.is_moved() or bool(full.min() >= 0 < full.max())

    def _is_moved_further(self) -> bool:
        """Looks for the total effect on further images, as far as the budget goes, and puts those that show it first."""
        count = self._count
        while (more := self._more_ends(count)) > 0:
            count += more
            if self._is_moved(count):
                break
        else:
            self._count = count
            return False
        shown = self._telling(self._order[:count])
        self._blank = [image_key for image_key in self._order[:count] if image_key not in shown]
        self._glances.reorder([*shown, *self._order[count:]])
        if not self._glances.images:
            self._glances.screen_full_run(late=self._whole)
        self._count = min(self._count, len(self._order)) if self._whole else min(FEWEST, len(shown))
        return True

    def _more_ends(self, count: int) -> int:
        """How many more images may be looked through for a total effect, so that a small final is left."""
        more = min(count, len(self._order) - count)
        if self._whole:
            return more
        kept = self._glances.run_nfe + self._glances.nfe_of_screening() + FEWEST * (2 + self._budget.beside) * self._run_nfe
        return min(more, int((self._left - kept) / (2 * self._run_nfe)))

    def _nothing(self) -> Confidence:
        """Where no image shows a total effect: all windows, or how likely it is that none does."""
        return self._confidence(1.0 if self._whole and self._sweep() else min(MAX_SCREEN_CONFIDENCE, self._absence))

    def _sure(self) -> float:
        """How sure it is of the strongest single layer."""
        if self._is_swept:
            return 1.0
        effects = self._runner.effects([*self.singles, *self.groups])
        if np.abs(np.nan_to_num(effects.values.numpy())).max() < _NOTHING * effects.total_mean():
            return self._absence
        bound = min(self._most, 1 - sum(self._reverse(rival) for rival in self._rivals))
        screened = min(self._most, 1 - sum(self._reverse(rival, self._glances.largest(rival)) for rival in self._rivals))
        return max(0.0, min(MAX_SCREEN_CONFIDENCE, bound) if self._screened else bound, min(MAX_SCREEN_CONFIDENCE, screened))

    @property
    def _variates(self) -> ControlVariates:
        """What single layers do in the images that were made, beside what the screen says of these and of others."""
        return self._glances.beside(self._runner.effects(self.singles))

    @property
    def _screened(self) -> int:
        """How many images layers are compared on, where the screen adds some."""
        return self._glances.images if self._glances.images > self._count and self._variates.helps else 0

    @property
    def _best(self) -> Patch:
        means = np.nanmean(self._variates.estimates(), axis=1)
        return min(self.singles, key=lambda each: (-means[self.singles.index(each)], each.layers))

    @property
    def _rivals(self) -> list[Patch]:
        best = self._best
        return [each for each in (*self.singles, *self.groups) if each != best]

    def _tied(self) -> tuple[int, ...]:
        """The layers that are not told apart from the best one, with it; none where it stands alone."""
        if not self.singles:
            return ()
        values = np.nanmean(np.nan_to_num(self._variates.estimates()[:, : self._count]), axis=1)
        best, full = self._best, self._runner.effects(self.singles).total_mean()
        means = dict(zip(self.singles, values, strict=True))
        if means[best] < _NOTHING * full or not means[best]:
            return ()
        tied = [each for each in self.singles if each == best or self._is_tied(each, means[best] - means[each], means[best], full)]
        return tuple(sorted(each.layers[0] for each in tied)) if len(tied) > 1 else ()

    def _is_tied(self, rival: Patch, behind: float, ahead: float, full: float) -> bool:
        if self._count == len(self._order):
            return behind <= _TIE * full
        return ahead - behind >= _CLOSE * ahead and self._reverse(rival) >= _TIED

    def _reverse(self, rival: Patch, part: float = 1.0) -> float:
        """The chance that a rival (or a part of a group's effect) is stronger than the best single layer on all images."""
        if rival in self.singles:
            return self._variates.p_rank_reversal(self.singles.index(self._best), self.singles.index(rival), len(self._order))
        best, other = self._runner.effects([self._best, rival]).values.numpy()
        differences = (best - part * other).ravel()
        return p_rank_reversal(differences[~np.isnan(differences)], len(self._order))

    def _go_on(self) -> bool:
        """Splits the strongest group that may hold a stronger layer, or sees more images; False where nothing is left to do."""
        allowed = (1 - TARGET_CONFIDENCE) / max(1, len(self._rivals))
        wide = {each: self._reverse(each, 1.0 if self._whole else self._glances.largest(each)) for each in self.groups}
        open_groups = [each for each, chance in wide.items() if chance > allowed]
        if not open_groups and self._count == len(self._order):
            return False
        if self._whole and (self._is_flat or self._prompts_disagree):
            return self._sweep()
        if not open_groups:
            return self._see_more()
        widest = max(open_groups, key=lambda each: wide[each])
        if self._whole or wide[widest] > self._contest:
            return self._split(widest) or self._see_more()
        return self._see_more() or self._split(widest)

    @property
    def _contest(self) -> float:
        """The chance that another single layer is the best."""
        return sum(self._reverse(each) for each in self._rivals if each in self.singles)

    def _see_more(self) -> bool:
        """More images of the layers that may still be the best: made, or only screened, whichever promises more."""
        every = self._count < _PICTURES or self._most < TARGET_CONFIDENCE
        alive = [self._best, *(each for each in self._rivals if every or self._reverse(each) >= _OUT)]
        more = min(len(self._order) - self._count, 1 if self._count < _PICTURES else self._count, self._affordable(2 + len(alive)))
        if not self._whole and self._contest > _CLOSE_CALL and self._variates.helps and self._screen_more(alive):
            return True
        if more < 1:
            return self._whole and self._sweep()
        self._count += more
        self._runner.measure(alive, self._image_keys)
        return True

    def _screen_more(self, alive: Sequence[Patch]) -> bool:
        """Looks at the beginnings of further runs, where that promises more than images for the same rows; False where it does not."""
        layers = [layer for each in self.singles for layer in each.layers]
        left, seen, of = self._left, self._glances.images, len(self._order)
        beginning, image = self._glances.nfe_of_truncated_run(len(layers)), (2 + len(alive)) * self._run_nfe
        more = min(of - seen, int(left / beginning))
        made, made_beside = (min(of, self._count + int(rows / image)) for rows in (left, left - more * beginning))
        error = self._variates.variance
        if more < 1 or error(made_beside, seen + more, of) >= error(made, seen, of):
            return False
        self._glances.screen_truncated_runs(more, layers)
        return True

    def _split(self, group: Patch) -> bool:
        ranked = np.array(group.layers)[np.argsort(-self._glances.parts(group.layers), kind="stable")]
        halves = [Patch(tuple(sorted(half))) for half in split(ranked.tolist(), 2)]
        image_keys = [image_key for image_key in self._image_keys if not np.isnan(self._value(group, image_key))]
        if self._affordable(len(halves)) < len(image_keys):
            return self._whole and self._sweep()
        self._replace(group, halves)
        self._runner.measure(halves, image_keys)
        return True

    def _replace(self, group: Patch, halves: list[Patch]) -> None:
        self.groups.remove(group)
        self.groups += [half for half in halves if len(half.layers) > 1]
        self.singles += [half for half in halves if len(half.layers) == 1]

    def _value(self, patch: Patch, image_key: ImageKey) -> float:
        pair, seed = image_key
        return float(self._runner.effects([patch]).values[0, pair, self._runner.experiment.seeds.index(seed)])

    def _sweep(self) -> bool:
        """Falls back on all windows of all images."""
        self._glances.reorder([*self._order, *self._blank])
        self._blank = []
        self.singles, self.groups, self._count = [Patch((layer,)) for layer in self._layers], [], len(self._order)
        self._runner.measure([*self.singles, *self._runner.beside], self._image_keys)
        return True

    @property
    def _is_flat(self) -> bool:
        return float(self._glances.shares.mean(axis=0).max()) < _NOTHING

    @property
    def _prompts_disagree(self) -> bool:
        values = self._runner.effects(self.singles).of_layers_by_prompt([each.layers[0] for each in self.singles])
        named = Counter(values[values.max(axis=1) > 0].argmax(axis=1).tolist())
        return bool(named) and max(named.values()) < _AGREEING * named.total()
