"""The base class of methods that score neurons by what they do in runs of the model."""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.results.scores import Neurons, NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.core.statistics import mean_test
from neuroscope.generation.experiment import PAIRS, Experiment, ExperimentMethod

#: The share of the way from which on an effect counts in tests, unless told otherwise.
LEAST = 0.005
#: A standard error of fewer says nothing.
_FEWEST_IMAGES = 3


class CausalAttribution(ExperimentMethod[NeuronScores]):
    """A method of `rank` that finds the neurons which control a concept. A frozen dataclass with one `__call__`.

    To add a method, derive a frozen dataclass whose fields are its options, and compute the scores in `__call__`.

    Attributes:
        roles: score the neurons of "key" and "value" sites, or of one of them.
        two_sided: whether scores below 0 count like those above.
        default_pairs: how many of a concept's pairs `rank` uses unless told otherwise; None for all.
    """

    two_sided: ClassVar[bool] = False
    default_pairs: ClassVar[int | None] = PAIRS

    roles: str | tuple[str, ...]

    @property
    def makes_images(self) -> bool:
        """Whether it makes images with single neurons changed, which an executor can make elsewhere."""
        return True

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
        return NeuronScores(sites, by_path(sites, scores), two_sided=self.two_sided, provenance=experiment.provenance(self))

    def mean_scores(
        self, experiment: Experiment, sites: Sites, by_image: Float[Tensor, "image neuron"], least: float = 0.0
    ) -> NeuronScores:
        """Means over images; from three images on with standard errors and p-values of whether they are above `least` (`mean_test`)."""
        made = self.scores(experiment, sites, by_image.mean(dim=0))
        if len(by_image) < _FEWEST_IMAGES:
            return made
        stderr, p_values = (by_path(sites, each) for each in mean_test(by_image, two_sided=self.two_sided, least=least))
        return replace(made, stderr=stderr, p_values=p_values)


def by_path(sites: Sites, values: Float[Tensor, "neuron"]) -> dict[str, Tensor]:
    """For each site's path its neurons' values, in float64."""
    return dict(zip(sites.paths, values.to(torch.float64).split([site.width for site in sites]), strict=True))


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
