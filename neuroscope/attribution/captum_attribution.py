"""Attributions of a `PatchingMetric` to the outputs of key and value projections, by captum."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from captum.attr import LayerActivation, LayerGradientXActivation, LayerIntegratedGradients
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.attribution.patching_metric import GRADIENT_MEMORY, WIDER, PatchingMetric
from neuroscope.core.errors import NonFiniteActivation

Kind = Literal["gradient", "integrated"]
#: Where gradients overflow in half precision: at how many scales of the loss to try, each so many times the one before.
_SCALES, _SMALLER = 6, 2.0**-4


def attribute(metric: PatchingMetric, modules: Sequence[nn.Module], kind: Kind, samples: int, batch_size: int) -> Float[Tensor, "neuron"]:
    """Each neuron's part of the metric, summed over tokens.

    Args:
        metric: of one recorded step.
        modules: the key and value projections whose outputs move. They must not depend on each other.
        kind: see `IntegratedGradients`.
        samples: the number of points at which "integrated" takes gradients.
        batch_size: how many rows without gradients fit the memory.

    Returns:
        In float64 the neurons of the first module, then those of the second, and so on.

    Raises:
        NonFiniteActivation: gradients are NaN or infinite at every scale of the metric that was tried.
    """
    for _ in range(_SCALES):
        with _without_reminders():
            parts = KINDS[kind](metric, list(modules), samples, max(1, batch_size // GRADIENT_MEMORY))
        found = torch.cat([part.detach().double().flatten(0, -2).sum(dim=0).cpu() for part in parts]) / metric.scale
        if found.isfinite().all():
            return found
        if metric.scale == 1.0:
            break
        metric.scale *= _SMALLER
    raise NonFiniteActivation(f"the gradients are NaN or infinite in {metric.dtype}, at every scale of the loss; {WIDER}")


def _gradient(metric: PatchingMetric, modules: list[nn.Module], _samples: int, _rows: int) -> list[Tensor]:
    """The gradient at the source, times the change of the activation from source to target.

    part = (a' - a) · ∂m/∂a at a, with the metric m and a module's output a in the source and a' in the target: attribution
    patching (Nanda 2023), the first term of the metric's Taylor series.

    Returns:
        For each module [1, token, neuron].
    """
    both = LayerActivation(metric, modules).attribute(torch.tensor([[0.0], [1.0]]))
    slopes = LayerGradientXActivation(metric, modules, multiply_by_inputs=False).attribute(torch.zeros(1, 1))
    return [slope * (reached[1:] - reached[:1]) for slope, reached in zip(_tensors(slopes), _tensors(both), strict=True)]


def _integrated(metric: PatchingMetric, modules: list[nn.Module], samples: int, rows: int) -> list[Tensor]:
    """Integrated gradients from source to target, by Gauss-Legendre quadrature.

    part = (a' - a) · ∫ ∂m/∂a at a + t · (a' - a) dt, for t from 0 to 1 (Sundararajan et al. 2017). The parts of all neurons add
    up to the metric's whole change, up to the error of the quadrature with `samples` points.

    Returns:
        For each module [1, token, neuron].
    """
    integral = LayerIntegratedGradients(metric, modules)
    return _tensors(integral.attribute(torch.ones(1, 1), torch.zeros(1, 1), n_steps=samples, internal_batch_size=rows))


def _tensors(found: Sequence[Any]) -> list[Tensor]:
    """One tensor a module; captum gives a tensor or a tuple of one."""
    return [each[0] if isinstance(each, tuple) else each for each in found]


@contextmanager
def _without_reminders() -> Iterator[None]:
    """Silences captum's reminder that the layers must not depend on each other. Key and value projections never do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Multiple layers provided", UserWarning)
        yield


KINDS: Mapping[str, Callable[[PatchingMetric, list[nn.Module], int, int], list[Tensor]]] = {
    "gradient": _gradient,
    "integrated": _integrated,
}
