"""A ranking of neurons against those that are known to carry a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import scipy.stats
import torch

import neuroscope as ns
from benchmarks.kept import Row

Truth = Mapping[str, Sequence[int]]
Q = 0.05


def judged(scores: ns.NeuronScores, towards: Truth, carrying: Truth) -> Row:
    """How a ranking finds the neurons that push towards the other prompt, as it ranks them, and all that carry, by the size of the score.

    Args:
        scores: of all neurons among which is searched.
        towards: the neurons that a mask which removes the concept should hold.
        carrying: these, and those that push away.
    """
    ranked, by_size = (
        torch.cat([each.strength(path) for path in scores.sites.paths]).numpy() for each in (scores, replace(scores, two_sided=True))
    )
    return {
        "neurons": len(ranked),
        "precision": precision(ranked, flags(scores.sites, towards)),
        "auroc": auroc(ranked, flags(scores.sites, towards)),
        "precision_by_size": precision(by_size, flags(scores.sites, carrying)),
        "auroc_by_size": auroc(by_size, flags(scores.sites, carrying)),
    }


def precision(strength: np.ndarray, wanted: np.ndarray) -> float:
    """The share of wanted neurons among the first k, where k are wanted; ties go to the earlier neuron."""
    first = np.argsort(-strength, kind="stable")[: wanted.sum()]
    return float(wanted[first].mean())


def auroc(strength: np.ndarray, wanted: np.ndarray) -> float:
    """The chance that a wanted neuron ranks before another, ties counted half."""
    test = scipy.stats.mannwhitneyu(strength[wanted], strength[~wanted])
    return float(test.statistic / (wanted.sum() * (~wanted).sum()))


def calibrated(scores: ns.NeuronScores, carrying: Truth, samples: int) -> Row:
    """How many neurons have q below 0.05, and how many of them carry nothing: as the ranking tests, and against 0."""
    wanted = flags(scores.sites, carrying)
    against_zero = replace(
        scores,
        p_values={
            path: torch.from_numpy(scipy.stats.t.sf((scores.scores[path] / scores.stderr[path]).nan_to_num().numpy(), samples - 1))
            for path in scores.sites.paths
        },
    )
    row: Row = {"neurons": len(wanted), "planted": int(wanted.sum())}
    for name, each in (("", scores), ("_against_zero", against_zero)):
        sure = torch.cat(list(each.q_values().values())).numpy() < Q
        row |= {f"found{name}": int(sure.sum()), f"wrong{name}": int((sure & ~wanted).sum())}
    return row


def flags(sites: ns.Sites, neurons: Truth) -> np.ndarray:
    """For each neuron of the sites, whether it is one of these."""
    return np.concatenate([np.isin(np.arange(site.width), neurons.get(site.path, ())) for site in sites])
