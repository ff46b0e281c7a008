"""Streamed statistics: what a recording keeps of activations that are seen once and let go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope._checks import finite_tensor, whole
from neuroscope._errors import InvalidInput, NonFiniteActivation


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations, in float64; the last axis is neurons, a first one (if any) steps.

    Batches are merged by Chan, Golub and LeVeque's pairwise update (1983), which loses no precision to large means.

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

        Raises:
            NonFiniteActivation: an observation is NaN or infinite.
        """
        values = observations.detach().to("cpu", torch.float64)
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).sum())
            raise NonFiniteActivation(
                f"{bad:,} of {values.numel():,} recorded activations are NaN or infinite; try float32 or bfloat16 weights"
            )
        mean = values.mean(dim=0)
        return cls(len(values), mean, (values - mean).square().sum(dim=0))

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets of observations."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        deviation = self.deviation + other.deviation + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, deviation)

    @property
    def variance(self) -> Float[Tensor, "*step neuron"]:
        """The unbiased variance; NaN for a single observation."""
        return self.deviation / (self.count - 1) if self.count > 1 else torch.full_like(self.deviation, torch.nan)

    @property
    def root_mean_square(self) -> Float[Tensor, "*step neuron"]:
        """The square root of the mean squared observation: the activation norm, per observation."""
        return (self.deviation / self.count + self.mean.square()).sqrt()

    def summary(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Mean, standard deviation and count, as `scipy.stats.ttest_ind_from_stats` takes them."""
        return self.mean.numpy(), self.variance.sqrt().numpy(), self.count
