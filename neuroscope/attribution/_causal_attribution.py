"""The base class of methods that score neurons by what they do in runs of the model."""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.scores import Neurons, NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.generation.experiment import Experiment, ExperimentMethod


class CausalAttribution(ExperimentMethod[NeuronScores]):
    """A method of `rank` that finds the neurons which control a concept. A frozen dataclass with one `__call__`.

    To add a method, derive a frozen dataclass whose fields are its options, and compute the scores in `__call__`.

    Attributes:
        roles: score the neurons of "key" and "value" sites, or of one of them.
        two_sided: whether scores below 0 count like those above.
    """

    two_sided: ClassVar[bool] = False

    roles: str | tuple[str, ...]

    @abc.abstractmethod
    def __call__(self, experiment: Experiment) -> NeuronScores:
        """Scores the neurons of `experiment.layers`.

        Args:
            experiment: the model, layers, prompts, seeds and metric.

        Raises:
            InvalidInput: an option that does not fit the model.
        """

    def sites(self, experiment: Experiment) -> Sites:
        """The sites whose neurons are scored."""
        return experiment.graph.sites.where(layer=experiment.layers, role=self.roles)

    def scores(self, experiment: Experiment, sites: Sites, scores: Float[Tensor, "neuron"]) -> NeuronScores:
        """Scores with their provenance, from the scores of all neurons of the first site, then of the second, and so on."""
        split = scores.to(torch.float64).split([site.width for site in sites])
        by_path = dict(zip(sites.paths, split, strict=True))
        return NeuronScores(sites, by_path, two_sided=self.two_sided, provenance=experiment.provenance(self))


def single(sites: Sites, number: int) -> Neurons:
    """One neuron, by its number among all neurons of the sites.

    Raises:
        IndexError: the sites have fewer neurons.
    """
    for site in sites:
        if number < site.width:
            return Neurons({site.path: [number]}, {site.path: site.width})
        number -= site.width
    raise IndexError(number)


def first_image(experiment: Experiment) -> Experiment:
    """The experiment reduced to its first pair and seed, without a contact sheet."""
    return replace(experiment, pairs=experiment.pairs[:1], seeds=experiment.seeds[:1], keep_images=0)
