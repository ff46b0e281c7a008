"""Streamed moments, and intervals of means and shares."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.checks import finite_tensor, whole
from neuroscope.core.errors import InvalidInput, NonFiniteActivation, counted


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations, in float64; the last axis is neurons, a first one (if any) steps.

    Batches are merged by Chan, Golub and LeVeque's pairwise update (1983), which loses no precision to large means.

    Attributes:
        count: the number of observations, n; one prompt is one observation.
        mean: of each neuron, in the activation's own units.
        deviation: of each neuron, the sum of (x - mean)² over its observations, in squared units.

    Raises:
        InvalidInput: no observation, different shapes, numbers that are not finite, or a negative sum of squares.
    """

    count: int
    mean: Float[Tensor, "*step neuron"]
    deviation: Float[Tensor, "*step neuron"]

    def __post_init__(self) -> None:
        whole("the number of observations", self.count)
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            finite_tensor(f"the {name} of the observations", values, *(["step"] * (values.ndim == 2)), "neuron")
        if self.mean.shape != self.deviation.shape:
            raise InvalidInput(f"mean and deviation have shapes {tuple(self.mean.shape)} and {tuple(self.deviation.shape)}; give one shape")
        if (self.deviation < 0).any():
            raise InvalidInput("a sum of squared deviations is negative; give 0 or more")

    @classmethod
    def of(cls, observations: Float[Tensor, "prompt *step neuron"]) -> Moments:
        """The moments of one batch.

        Args:
            observations: at least one; of any floating-point format, on any device. They are counted in float64 on the CPU.

        Raises:
            NonFiniteActivation: an observation is NaN or infinite.
        """
        values = observations.detach().to("cpu", torch.float64)
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).sum())
            raise NonFiniteActivation(
                f"of {counted(values.numel(), 'recorded activation')}, {bad:,} {'is' if bad == 1 else 'are'} NaN or infinite; "
                "try float32 or bfloat16 weights"
            )
        mean = values.mean(dim=0)
        return cls(len(values), mean, (values - mean).square().sum(dim=0))

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets of observations, which must have the same shape.

        With n = n1 + n2 and δ = mean2 - mean1 (Chan, Golub and LeVeque 1983):

            mean = mean1 + δ · n2 / n
            deviation = deviation1 + deviation2 + δ² · n1 · n2 / n
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        deviation = self.deviation + other.deviation + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, deviation)

    @property
    def variance(self) -> Float[Tensor, "*step neuron"]:
        """The unbiased variance, deviation / (n - 1); NaN for a single observation."""
        return self.deviation / (self.count - 1) if self.count > 1 else torch.full_like(self.deviation, torch.nan)

    @property
    def root_mean_square(self) -> Float[Tensor, "*step neuron"]:
        """The square root of the mean squared observation, sqrt(deviation / n + mean²): the activation norm, per observation."""
        return (self.deviation / self.count + self.mean.square()).sqrt()

    def summary(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Mean, standard deviation and count, as `scipy.stats.ttest_ind_from_stats` takes them.

        Returns:
            float64 arrays of the moments' shape, and the number of observations. The deviation is NaN for one observation.
        """
        return self.mean.numpy(), self.variance.sqrt().numpy(), self.count


class MeanTest(NamedTuple):
    """What a t-test says of a mean.

    Attributes:
        stderr: the standard error of the mean.
        p_value: by Student's t.
    """

    stderr: Float[Tensor, "neuron"]
    p_value: Float[Tensor, "neuron"]


def mean_test(observations: Float[Tensor, "image neuron"], *, two_sided: bool, least: float = 0.0) -> MeanTest:
    """Tells whether each neuron's mean over images is above `least`, or, two-sided, above `least` or below -`least`.

    By one-sample t-tests, in float64. A neuron with the same value in every image has a standard error of 0, and p = 1 where that
    value is not beyond `least`.
    """
    values = observations.numpy().astype(np.float64)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, of values that are nearly alike
        p_value = scipy.stats.ttest_1samp(values, least, axis=0, alternative="greater").pvalue
        if two_sided:
            below = scipy.stats.ttest_1samp(values, -least, axis=0, alternative="less").pvalue
            p_value = np.minimum(1.0, 2 * np.fmin(p_value, below))
    p_value = np.where(np.isnan(p_value), 1.0, p_value)
    return MeanTest(torch.from_numpy(scipy.stats.sem(values, axis=0)), torch.from_numpy(p_value))


def is_share(scores: Float[np.ndarray, "..."]) -> bool:
    """Whether all scores that are known are 0 or 1, so that their mean is a share of images.

    Args:
        scores: of any shape; NaN where a score is not known. Without any known score the answer is no.
    """
    known = scores[~np.isnan(scores)]
    return bool(known.size) and bool(np.isin(known, (0.0, 1.0)).all())


def share_interval(count: float, of: float, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share, by Clopper and Pearson (1934), as `scipy.stats.binomtest(count, of).proportion_ci` gives it.

    Args:
        count: how many of the prompts have it. Where the images of a prompt differ, a prompt counts as its share of them: the
            interval is then Korn and Graubard's (1998), as if the images of one prompt told no more than one image.
        of: the number of prompts.
        confidence: such as 0.95.

    Returns:
        Its ends (low, high), in shares; NaN where there is no prompt.
    """
    if of == 0:
        return np.nan, np.nan
    count = min(max(count, 0.0), float(of))
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(scipy.stats.beta.ppf(tail, count, of - count + 1))
    high = 1.0 if count == of else float(scipy.stats.beta.ppf(1 - tail, count + 1, of - count))
    return low, high


def difference_interval(up: float, down: float, of: float, confidence: float = 0.95) -> tuple[float, float]:
    """An interval of the share of images that rise less the share that falls: each share's exact one, at half of the error.

    Args:
        up: how many of the prompts rise; counted as in `share_interval`.
        down: how many of them fall.
        of: the number of prompts.
        confidence: such as 0.95.

    Returns:
        Its ends (low, high), from -1 to 1; NaN where there is no prompt. By Bonferroni's inequality the interval covers the
        difference with at least this confidence, however the two shares depend on each other.
    """
    each = (1 + confidence) / 2
    (risen, rise), (fallen, fall) = share_interval(up, of, each), share_interval(down, of, each)
    return risen - fall, rise - fallen


def mean_interval(by_prompt: Float[np.ndarray, "prompt"], share: bool, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The interval of a mean over prompts.

    Args:
        by_prompt: each prompt's mean score.
        share: whether the scores are 0 or 1, see `is_share`: then the interval is exact, otherwise a bootstrap over prompts.
        confidence: such as 0.95.
        seed: of the bootstrap.

    Returns:
        Its ends (low, high); NaN where nothing can be said: for no prompt, and, of other scores than shares, for one prompt
        or where all prompts have the same.
    """
    if share:
        return share_interval(round(float(by_prompt.sum()), 9), len(by_prompt), confidence)
    if len(by_prompt) < 2 or np.ptp(by_prompt) == 0:
        return np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scipy.stats.bootstrap((by_prompt,), np.mean, confidence_level=confidence, method="percentile", rng=seed)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
