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
from neuroscope.generation.experiment import Study
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
    def __call__(self, study: Study) -> NeuronScores:
        """The neurons' scores."""

    def sites(self, study: Study) -> Sites:
        """The sites whose neurons are scored.

        Raises:
            InvalidInput: a layer that the model lacks.
        """
        return study.graph.sites.where(layer=self.layers, role=self.roles)

    def scores(self, study: Study, sites: Sites, scores: Float[Tensor, "neuron"]) -> NeuronScores:
        """The scores of all sites' neurons, given one after the other."""
        split = scores.to(torch.float64).split([site.width for site in sites])
        by_path = dict(zip(sites.paths, split, strict=True))
        return NeuronScores(sites, by_path, two_sided=self.two_sided, provenance=study.provenance(self))


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


def alone(study: Study) -> Study:
    """A study of the first picture: the first pair and seed, without a contact sheet."""
    return replace(study, pairs=study.pairs[:1], seeds=study.seeds[:1], keep_images=0)
