"""Activation norm times weight norm, the pruning literature's score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from neuroscope.attribution._attribution import Attribution, Evidence, Scored


@dataclass(frozen=True)
class WeightedNorm(Attribution):
    """Root mean square of a neuron's activation times the norm of its outgoing weights, with the concept minus without it.

    The neuron-wise form of Wanda (Sun et al. 2024), |W|·‖a‖, as the difference between the arms: ConceptPrune
    (Chavhan et al. 2024) keeps neurons whose score is larger with the concept than without.
    """

    two_sided: ClassVar[bool] = False

    def __call__(self, evidence: Evidence) -> Scored:
        """The difference of each neuron of a site, in float64; raises InvalidInput where the weights are quantised."""
        return Scored((evidence.present.root_mean_square - evidence.absent.root_mean_square) * evidence.outgoing)
