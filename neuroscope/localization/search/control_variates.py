"""Control variates: what a screen of many images adds to effects that were measured in few of them.

Where a screen and exact effects rise and fall together from image to image, what the screen says of further images is
worth nearly as much as making them: the difference between the two has less scatter than the effects, and its mean over few
images, added to the screen's over many, is the better estimate (difference estimator in double sampling: Cochran 1977,
chapter 12).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from neuroscope.core.quality import p_rank_reversal

#: Effects of fewer images do not show how well they are predicted, and where less of them is predicted, the screen is not asked.
_FEWEST, _FORESEEN = 3, 0.3


@dataclass(frozen=True, eq=False)
class ControlVariates:
    """Effects of layers, and what a screen foresees of them in the same images and in others.

    Attributes:
        effects: NaN where an image was not measured.
        predicted: in the same units; NaN where it was not screened.
    """

    effects: Float[np.ndarray, "layer image"]
    predicted: Float[np.ndarray, "layer image"]

    @property
    def r_squared(self) -> float:
        """The part of the effects' scatter between images that is predicted: 1 is all, and below 0 the screen misleads."""
        scatter = _scatter(self._where_both(self.effects))
        return 1 - _scatter(self._where_both(self.effects - self.predicted)) / scatter if scatter else 0.0

    @property
    def helps(self) -> bool:
        """Whether enough is predicted to rely on it."""
        return self._both.sum(axis=1).max(initial=0) >= _FEWEST and self.r_squared >= _FORESEEN

    def estimates(self) -> Float[np.ndarray, "layer image"]:
        """The effects, and for images that were only screened what is to be expected, so that means are the better estimates."""
        if not self.helps:
            return self.effects
        missed = self._where_both(self.effects - self.predicted)
        counts = (~np.isnan(missed)).sum(axis=1, keepdims=True)
        level = np.divide(np.nansum(missed, axis=1, keepdims=True), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        return np.where(np.isnan(self.effects), self.predicted + level, self.effects)

    def variance(self, measured: int, screened: int, of: int) -> float:
        """The variance of a layer's mean over all images, where so many are measured and so many screened; a single image's is 1."""
        if screened <= measured or not self.helps:
            return 1 / measured - 1 / of
        return (1 - self.r_squared) * (1 / measured - 1 / screened) + 1 / screened - 1 / of

    def p_rank_reversal(self, best: int, rival: int, of: int) -> float:
        """The chance that one layer's mean over all images is not above another's; see `confidence.p_rank_reversal`.

        The error has a part from the images that were measured, of what is not predicted, and one from those that were screened.
        """
        effects, predicted = (each[best] - each[rival] for each in (self.effects, self.predicted))
        known, seen = ~np.isnan(effects), ~np.isnan(predicted)
        measured, screened = int(known.sum()), int(seen.sum())
        if not self.helps or (known & ~seen).any() or screened <= measured or measured < _FEWEST:
            return p_rank_reversal(effects[known], of)
        missed = effects[known] - predicted[known]
        unforeseen = float(missed.var(ddof=1))
        whole = max(float(effects[known].var(ddof=1)), float(predicted[seen].var(ddof=1)) + unforeseen)
        variance = unforeseen * (1 / measured - 1 / screened) + whole * (1 / screened - 1 / of)
        mean = float(missed.mean() + predicted[seen].mean())
        return float(scipy.stats.t.sf(mean / np.sqrt(variance), measured - 1)) if variance else float(mean < 0)

    @property
    def _both(self) -> Bool[np.ndarray, "layer image"]:
        result: Bool[np.ndarray, "layer image"] = ~np.isnan(self.effects) & ~np.isnan(self.predicted)
        return result

    def _where_both(self, values: Float[np.ndarray, "layer image"]) -> Float[np.ndarray, "layer image"]:
        return np.where(self._both, values, np.nan)


def _scatter(values: Float[np.ndarray, "layer image"]) -> float:
    """The sum of squares around each layer's mean."""
    known = ~np.isnan(values)
    means = np.nansum(values, axis=1, keepdims=True) / known.sum(axis=1, keepdims=True).clip(min=1)
    return float(np.square(np.where(known, values - means, 0.0)).sum())
