"""What a search knows at one moment, as frozen data, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from neuroscope.core.results.effects import Effects, Patch
from neuroscope.core.results.quality import MAX_SCREEN_CONFIDENCE, p_minority, p_none, p_rank_reversal, p_tie
from neuroscope.generation.experiment import ImageKey
from neuroscope.localization.search.control_variates import ControlVariates
from neuroscope.localization.search.settings import SETTINGS


@dataclass(frozen=True, eq=False)
class SearchState:
    """What a search knows once it has measured some layers.

    Attributes:
        layers: all layers of the model.
        singles: the layers that were measured alone.
        groups: the layers that were measured together.
        order: the images, those that were measured first.
        blank: images without a total effect that were put aside.
        count: how many images of `order` were measured.
        effects: of `singles`, then of `groups`; NaN where an image was not measured.
        variates: the effects of `singles` beside the screen's predictions of them.
        shares: the screen's mean share of each layer.
        screened_images: how many images were screened.
        exhaustive: whether the budget is that of all windows, so that the search goes on until it is confident.
        nfe_left: what is left of the budget.
        run_nfe: the cost of a run.
        truncated_nfe: the cost of screening a truncated run.
    """

    layers: tuple[int, ...]
    singles: tuple[Patch, ...]
    groups: tuple[Patch, ...]
    order: tuple[ImageKey, ...]
    blank: tuple[ImageKey, ...]
    count: int
    effects: Effects
    variates: ControlVariates
    shares: Float[np.ndarray, "layer"]
    screened_images: int
    exhaustive: bool
    nfe_left: float
    run_nfe: float
    truncated_nfe: float

    @cached_property
    def best(self) -> Patch:
        """The single layer with the largest mean effect."""
        estimates = self.variates.estimates()
        silent = np.isnan(estimates).all(axis=1)  # where the prompts' images are the same
        means = np.nanmean(np.where(silent[:, None], 0.0, estimates), axis=1)
        return min(self.singles, key=lambda each: (-means[self.singles.index(each)], each.layers))

    @property
    def rivals(self) -> list[Patch]:
        """All measured layers and groups but the best."""
        return [each for each in (*self.singles, *self.groups) if each != self.best]

    @property
    def image_keys(self) -> tuple[ImageKey, ...]:
        """The images that were measured."""
        return self.order[: self.count]

    @property
    def is_swept(self) -> bool:
        """Whether all windows were measured on all images."""
        return len(self.singles) == len(self.layers) and not self.blank and self.count == len(self.order)

    @property
    def compared_on_screen(self) -> int:
        """How many images layers are compared on with the screen's help; 0 where it adds none."""
        return self.screened_images if self.screened_images > self.count and self.variates.helps else 0

    @property
    def p_other_best(self) -> float:
        """The probability that another single layer is the best."""
        return sum(self.p_ahead(each) for each in self.rivals if each in self.singles)

    @cached_property
    def max_confidence(self) -> float:
        """The confidence that images which all agree allow; see `max_confidence_on`."""
        return self.max_confidence_on(self.count)

    def max_confidence_on(self, count: int) -> float:
        """The confidence that so many images would allow if all agree, and if those not measured yet have a total effect.

        They may all be of a smaller half. With no more than half of the prompts, it is capped as a screen's is.
        """
        shown = with_total_effect(self.effects, self.image_keys)
        known = [*shown, *self.order[self.count : count]]
        every = [*shown, *self.order[self.count :]]
        prompts, of = (len({pair for pair, _ in keys}) for keys in (known, every))
        most = 1 - max(p_minority(len(known), len(every)), p_tie(prompts, of))
        return most if 2 * prompts > of else min(MAX_SCREEN_CONFIDENCE, most)

    def affordable(self, runs: int) -> int:
        """How many images the budget allows, with so many runs each."""
        return int(self.nfe_left / (runs * self.run_nfe))

    def p_ahead(self, rival: Patch, part: float = 1.0) -> float:
        """The probability that a rival is stronger than the best single layer on all images.

        Args:
            rival: a single layer or a group.
            part: the part of a group's effect that counts.
        """
        if rival in self.singles:
            return self.variates.p_rank_reversal(self.singles.index(self.best), self.singles.index(rival), len(self.order))
        best, other = (self._values(each) for each in (self.best, rival))
        differences = (best - part * other).ravel()
        return p_rank_reversal(differences[~np.isnan(differences)], len(self.order))

    def largest_part(self, group: Patch) -> float:
        """The part of a group's effect that one of its layers may have."""
        return float(min(1.0, SETTINGS.unevenness * max(self.parts(group.layers))))

    def parts(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """The part that each of some layers has in the effect of all of them, by the screen."""
        return parts_of(self.shares, np.searchsorted(self.layers, layers))

    def measured_images(self, patch: Patch) -> list[ImageKey]:
        """The images in which a patch was measured."""
        values = self._values(patch)
        return [(pair, seed) for pair, seed in self.image_keys if not np.isnan(values[pair, self.effects.seeds.index(seed)])]

    def _values(self, patch: Patch) -> Float[np.ndarray, "prompt seed"]:
        values: np.ndarray = self.effects.values.numpy()[self.effects.patches.index(patch)]
        return values


def parts_of(shares: Float[np.ndarray, "layer"], numbers: Sequence[int] | np.ndarray) -> Float[np.ndarray, "..."]:
    """The part that each of some layers has in the effect of all of them, by the screen's shares; none is 0."""
    chosen = shares[numbers].clip(min=0) + 1e-3
    parts: np.ndarray = chosen / chosen.sum()
    return parts


def with_total_effect(effects: Effects, image_keys: Sequence[ImageKey]) -> list[ImageKey]:
    """Those of some images that have a total effect, and in which all patches were measured."""
    shown = np.nan_to_num(effects.total.numpy()) * (~np.isnan(effects.values.numpy())).all(axis=0)
    return [(pair, seed) for pair, seed in image_keys if shown[pair, effects.seeds.index(seed)]]


def absence(count: int, of: int) -> float:
    """The confidence that an effect which none of `count` images has is negligible over all `of` images."""
    return 1 - p_none(count, of, SETTINGS.negligible)
