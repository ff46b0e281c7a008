"""Control variates: better estimates of effects that were measured on few images, by a screen of many.

Where the screen and exact effects rise and fall together from image to image, screening further images is worth nearly as much as
measuring them. Their difference has less variance than the effects, so that its mean over few images, added to the screen's mean over
many, is the better estimate (difference estimator in double sampling: Cochran 1977, chapter 12).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from neuroscope.core.results.quality import p_rank_reversal

#: The screen is used from this many images on that are both measured and screened, and from this share of explained variance on.
_FEWEST, _MIN_R_SQUARED = 3, 0.3


@dataclass(frozen=True, eq=False)
class ControlVariates:
    """Effects of layers, and a screen's predictions of them on the same images and on others.

    Attributes:
        effects: NaN where an image was not measured.
        predicted: in the same units; NaN where it was not screened.
    """

    effects: Float[np.ndarray, "layer image"]
    predicted: Float[np.ndarray, "layer image"]

    @property
    def r_squared(self) -> float:
        """The share of the effects' variance between images that the screen explains; below 0 it misleads."""
        scatter = _scatter(self._where_both(self.effects))
        return 1 - _scatter(self._where_both(self.effects - self.predicted)) / scatter if scatter else 0.0

    @property
    def helps(self) -> bool:
        """Whether the screen explains enough to be used."""
        return self._both.sum(axis=1).max(initial=0) >= _FEWEST and self.r_squared >= _MIN_R_SQUARED

    def estimates(self) -> Float[np.ndarray, "layer image"]:
        """The effects, and on images that were only screened their expected values, so that means are the better estimates."""
        if not self.helps:
            return self.effects
        missed = self._where_both(self.effects - self.predicted)
        counts = (~np.isnan(missed)).sum(axis=1, keepdims=True)
        level = np.divide(np.nansum(missed, axis=1, keepdims=True), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        return np.where(np.isnan(self.effects), self.predicted + level, self.effects)

    def variance(self, measured: int, screened: int, of: int) -> float:
        """The variance of a layer's mean over all images, in units of the variance between images.

        Args:
            measured: on how many images the layer is measured.
            screened: on how many it is screened.
            of: the number of all images.
        """
        if screened <= measured or not self.helps:
            return 1 / measured - 1 / of
        return (1 - self.r_squared) * (1 / measured - 1 / screened) + 1 / screened - 1 / of

    def p_rank_reversal(self, best: int, rival: int, of: int) -> float:
        """The probability that a layer's mean over all images is not above another's, by Student's t.

        The variance has a part from the measured images, for what the screen does not explain, and one from the screened images.

        Args:
            best: the number of the layer.
            rival: the number of the other.
            of: the number of all images.
        """
        effects, predicted = (each[best] - each[rival] for each in (self.effects, self.predicted))
        known, seen = ~np.isnan(effects), ~np.isnan(predicted)
        measured, screened = int(known.sum()), int(seen.sum())
        if not self.helps or (known & ~seen).any() or screened <= measured or measured < _FEWEST:
            return p_rank_reversal(effects[known], of)
        missed = effects[known] - predicted[known]
        unexplained = float(missed.var(ddof=1))
        whole = max(float(effects[known].var(ddof=1)), float(predicted[seen].var(ddof=1)) + unexplained)
        variance = unexplained * (1 / measured - 1 / screened) + whole * (1 / screened - 1 / of)
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
