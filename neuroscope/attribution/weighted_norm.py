"""Activation norm times weight norm, the pruning literature's score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from neuroscope.attribution._attribution import Attribution, Evidence, Scored


@dataclass(frozen=True)
class WeightedNorm(Attribution):
    """Root mean square of a neuron's activation times the norm of its outgoing weights, with the concept minus without it.

    score = ‖w‖ · (sqrt(mean(a1²)) - sqrt(mean(a2²))), with w the weights that read the neuron and a its activations in each
    arm. This is the neuron-wise form of Wanda (Sun et al. 2024), |W|·‖a‖, as the difference between the arms: ConceptPrune
    (Chavhan et al. 2024) keeps neurons whose score is larger with the concept than without. Scores below 0 are not evidence
    for the concept, so the ranking is one-sided.
    """

    two_sided: ClassVar[bool] = False

    def __call__(self, evidence: Evidence) -> Scored:
        """The difference of each neuron of a site, in float64: [neuron], or [step, neuron] if recorded by step.

        Raises:
            InvalidInput: the weights that read the site are quantised, so that their norms are not known.
        """
        return Scored((evidence.present.root_mean_square - evidence.absent.root_mean_square) * evidence.outgoing)
