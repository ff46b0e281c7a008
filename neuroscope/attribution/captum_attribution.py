"""Captum's attributions of a `PatchingMetric` to the outputs of modules, which do not depend on each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from captum.attr import LayerActivation, LayerGradientXActivation, LayerIntegratedGradients
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.attribution.patching_metric import PatchingMetric

Kind = Literal["gradient", "integrated"]
#: How many times a module's own memory a row takes that keeps all that its gradients need, about.
_KEPT = 16


def attribute(way: PatchingMetric, modules: Sequence[nn.Module], kind: Kind, samples: int, batch_size: int) -> Float[Tensor, "neuron"]:
    """Each neuron's part of the share of the way that the modules go together, summed over tokens; the modules' one after the other.

    Args:
        way: of one frame.
        modules: the text-side modules whose outputs move.
        kind: see `NeuronGradient`.
        samples: as there.
        batch_size: how many rows without gradients fit the memory; those with gradients take more.
    """
    with _quiet():
        parts = KINDS[kind](way, list(modules), samples, max(1, batch_size // _KEPT))
    return torch.cat([part.detach().double().flatten(0, -2).sum(dim=0).cpu() for part in parts])


def _gradient(way: PatchingMetric, modules: list[nn.Module], _samples: int, _rows: int) -> list[Tensor]:
    """Gradients at the beginning of the way, times what the activations change until its end."""
    both = LayerActivation(way, modules).attribute(torch.tensor([[0.0], [1.0]]))
    slopes = LayerGradientXActivation(way, modules, multiply_by_inputs=False).attribute(torch.zeros(1, 1))
    return [slope * (reached[1:] - reached[:1]) for slope, reached in zip(_tensors(slopes), _tensors(both), strict=True)]


def _integrated(way: PatchingMetric, modules: list[nn.Module], samples: int, rows: int) -> list[Tensor]:
    """The integral by Gauss and Legendre's rule."""
    integral = LayerIntegratedGradients(way, modules)
    return _tensors(integral.attribute(torch.ones(1, 1), torch.zeros(1, 1), n_steps=samples, internal_batch_size=rows))


def _tensors(found: Sequence[Any]) -> list[Tensor]:
    """Captum gives a tensor or a tuple of one for each module."""
    return [each[0] if isinstance(each, tuple) else each for each in found]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without captum's reminder that layers must not depend on each other: text-side modules never do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Multiple layers provided", UserWarning)
        yield


KINDS: Mapping[str, Callable[[PatchingMetric, list[nn.Module], int, int], list[Tensor]]] = {
    "gradient": _gradient,
    "integrated": _integrated,
}
