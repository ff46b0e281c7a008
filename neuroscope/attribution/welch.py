"""Welch's t, the neuron score of LOCOGEN's published code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch

from neuroscope.attribution._attribution import Attribution, Evidence, Scored
from neuroscope.core.statistics import Moments

_ROUNDING = 1e-12


def _deviation(moments: Moments) -> np.ndarray:
    """The standard deviation of each neuron with n, not n - 1, under the sum: sqrt(deviation / n)."""
    return np.sqrt(moments.deviation.numpy() / moments.count)


def _error(evidence: Evidence) -> np.ndarray:
    """The standard error of the difference of means, sqrt(s1²/n1 + s2²/n2), with unbiased variances."""
    return np.sqrt(sum(each.variance.numpy() / each.count for each in (evidence.present, evidence.absent)))


@dataclass(frozen=True)
class Welch(Attribution):
    """Welch's t between prompts with and without the concept, with its two-sided p-value.

    t = (mean1 - mean2) / sqrt(s1²/n1 + s2²/n2), with unbiased variances. A neuron that is the same in every prompt
    scores 0 with p = 1. The standard error is at least what rounding makes of the means, 1e-12 of their sizes' sum, so that a
    neuron which is constant in each arm has a finite t too. Basu et al. (2024) rank by |t|.
    """

    def __call__(self, evidence: Evidence) -> Scored:
        """Welch's t and its two-sided p-value for each neuron of a site, in float64.

        The p-value is that of Student's t with the degrees of freedom of Welch (1947) and Satterthwaite (1946):

            ν = (s1²/n1 + s2²/n2)² / ((s1²/n1)² / (n1 - 1) + (s2²/n2)² / (n2 - 1))

        Args:
            evidence: moments of at least two prompts in each arm; samples and weights are not read.

        Returns:
            t, positive where the concept raises the activation, and p from 0 to 1: [neuron], or [step, neuron] if recorded by step.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            result = scipy.stats.ttest_ind_from_stats(*evidence.present.summary(), *evidence.absent.summary(), equal_var=False)
        difference = (evidence.present.mean - evidence.absent.mean).numpy()
        least = _ROUNDING * (evidence.present.mean.abs() + evidence.absent.mean.abs()).numpy()
        constant = (np.abs(difference) <= least) & (np.maximum(_deviation(evidence.present), _deviation(evidence.absent)) <= least)
        rounded = np.divide(difference, least, out=np.zeros_like(difference), where=least > 0)
        exact = _error(evidence) < least
        statistic = np.where(constant, 0.0, np.where(exact, rounded, result.statistic))
        p_value = np.where(constant, 1.0, result.pvalue)
        return Scored(torch.from_numpy(statistic), torch.from_numpy(p_value))
