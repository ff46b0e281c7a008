"""The difference of means, in the activation's own units."""

from __future__ import annotations

from dataclasses import dataclass

from neuroscope.attribution._attribution import Attribution, Evidence, Scored


@dataclass(frozen=True)
class MeanDifference(Attribution):
    """Mean activation with the concept minus mean activation without it: mean1 - mean2, not divided by any spread.

    A site with larger activations has larger scores, so an unweighted ranking over several sites favours such sites.

    Attributes:
        weighted: multiply by the norm of the weights that read the neuron, so that neurons of different sites can be compared.
    """

    weighted: bool = False

    def __call__(self, evidence: Evidence) -> Scored:
        """The difference of means of each neuron of a site, in float64: [neuron], or [step, neuron] if recorded by step.

        Raises:
            InvalidInput: `weighted`, and the weights that read the site are quantised, so that their norms are not known.
        """
        difference = evidence.present.mean - evidence.absent.mean
        return Scored(difference * evidence.outgoing if self.weighted else difference)
