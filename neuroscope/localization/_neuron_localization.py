"""What a method that scores neurons is."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.core.scores import Neurons, NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.generation.experiment import Experiment
from neuroscope.localization._localization import Localization


class NeuronLocalization(Localization[NeuronScores]):
    """A method that finds the neurons, rather than the layers, that control a concept. A frozen dataclass with one `__call__`.

    Attributes:
        layers: score the neurons of these layers; None for all.
        roles: of "key" and "value" sites, or of one of them.
    """

    two_sided: ClassVar[bool] = False

    layers: int | tuple[int, ...] | None
    roles: str | tuple[str, ...]

    @abc.abstractmethod
    def __call__(self, experiment: Experiment) -> NeuronScores:
        """The neurons' scores."""

    def sites(self, experiment: Experiment) -> Sites:
        """The sites whose neurons are scored.

        Raises:
            InvalidInput: a layer that the model lacks.
        """
        return experiment.graph.sites.where(layer=self.layers, role=self.roles)

    def scores(self, experiment: Experiment, sites: Sites, scores: Float[Tensor, "neuron"]) -> NeuronScores:
        """The scores of all sites' neurons, given one after the other."""
        split = scores.to(torch.float64).split([site.width for site in sites])
        by_path = dict(zip(sites.paths, split, strict=True))
        return NeuronScores(sites, by_path, two_sided=self.two_sided, provenance=experiment.provenance(self))


def normal_layers(layers: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Chosen layers as a tuple; raises InvalidInput where none is left."""
    if layers is None:
        return None
    chosen = checks.layers("layers", layers)
    if not chosen:
        raise InvalidInput("layers is empty, so no neuron is left; give layers, or None for all")
    return chosen


def single(sites: Sites, number: int) -> Neurons:
    """One neuron, by its number among all neurons of the sites."""
    for site in sites:
        if number < site.width:
            return Neurons({site.path: [number]}, {site.path: site.width})
        number -= site.width
    raise IndexError(number)


def alone(experiment: Experiment) -> Experiment:
    """An experiment of the first image: the first pair and seed, without a contact sheet."""
    return replace(experiment, pairs=experiment.pairs[:1], seeds=experiment.seeds[:1], keep_images=0)
