"""Confidence intervals of means over prompts: exact ones of shares of images, bootstrap ones of everything else."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.stats
from jaxtyping import Float


def is_share(scores: Float[np.ndarray, "..."]) -> bool:
    """Whether all scores that are known are 0 or 1, so that their mean is a share of images."""
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
