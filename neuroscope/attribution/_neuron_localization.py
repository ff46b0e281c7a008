"""The base class of methods that score neurons in runs of the model."""

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
from neuroscope.generation.experiment import Experiment, Localization


class NeuronLocalization(Localization[NeuronScores]):
    """A method that finds the neurons that control a concept. A frozen dataclass with one `__call__`.

    Attributes:
        layers: score the neurons of these layers; None for all.
        roles: of "key" and "value" sites, or of one of them.
        two_sided: whether scores below 0 count like those above.
    """

    two_sided: ClassVar[bool] = False

    layers: int | tuple[int, ...] | None
    roles: str | tuple[str, ...]

    @abc.abstractmethod
    def __call__(self, experiment: Experiment) -> NeuronScores:
        """Scores the neurons; see `Localization.__call__`."""

    def sites(self, experiment: Experiment) -> Sites:
        """The sites whose neurons are scored.

        Raises:
            InvalidInput: a layer that the model lacks.
        """
        return experiment.graph.sites.where(layer=self.layers, role=self.roles)

    def scores(self, experiment: Experiment, sites: Sites, scores: Float[Tensor, "neuron"]) -> NeuronScores:
        """Scores with their provenance, from the scores of all neurons of the first site, then of the second, and so on."""
        split = scores.to(torch.float64).split([site.width for site in sites])
        by_path = dict(zip(sites.paths, split, strict=True))
        return NeuronScores(sites, by_path, two_sided=self.two_sided, provenance=experiment.provenance(self))


def normal_layers(layers: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Chosen layers as a tuple, or None for all; raises InvalidInput for what is no layer, and for none."""
    if layers is None:
        return None
    chosen = checks.layers("layers", layers)
    if not chosen:
        raise InvalidInput("layers is empty, so no neuron is left; give layers, or None for all")
    return chosen


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
