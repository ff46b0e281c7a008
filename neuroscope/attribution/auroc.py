"""The area under the receiver operating characteristic: how well one neuron separates the arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.stats
import torch

from neuroscope.attribution._attribution import Attribution, Evidence, Scored


@dataclass(frozen=True)
class Auroc(Attribution):
    """The probability that a present prompt activates the neuron more than an absent one; ties count half.

    AUROC = U / (n1 · n2), with the statistic U of Mann and Whitney (1947); the p-value is that test's, two-sided, from the
    normal approximation with corrections for ties and continuity. 0.5 is a neuron that does not tell the arms apart, 1 one that is
    always higher with the concept, 0 one that is always lower.
    """

    neutral: ClassVar[float] = 0.5
    needs_samples: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Scored:
        """The area and its two-sided p-value for each neuron of a site, in float64; a constant neuron has 0.5 and p = 1.

        Args:
            evidence: with the samples of both arms, [prompt, neuron], of as many prompts as there were; averaged over steps.
        """
        present, absent = (each.numpy().astype(np.float64) for each in evidence.samples or ())
        result = scipy.stats.mannwhitneyu(present, absent, axis=0, method="asymptotic")
        constant = np.isnan(result.pvalue)
        area = result.statistic / (len(present) * len(absent))
        return Scored(torch.from_numpy(np.where(constant, 0.5, area)), torch.from_numpy(np.where(constant, 1.0, result.pvalue)))
