"""The metric of attribution patching, as a function that gradients can be taken of."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import NonFiniteActivation
from neuroscope.core.sites import TEXT_ROLES
from neuroscope.generation.teacher_forcing import StepInput
from neuroscope.interventions import ContextSwap
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.graph import HookGraph

#: What to do about numbers that overflow.
WIDER = "load the pipeline in a wider format, such as torch_dtype=torch.bfloat16 or torch.float32"
#: The formats in which small gradients vanish, so that a loss is scaled.
HALF = (torch.float16, torch.bfloat16)
#: A row with gradients takes about this many times the memory of a row without.
GRADIENT_MEMORY = 16
#: Of a gradient with respect to the prediction: float16 ends at 2**16, and gradients of sites may be larger than those of the prediction.
_LARGEST = 2.0**8
_ROUNDING = 1e-5


class PatchingMetric:
    """How far one prediction moves towards the target's, as some sites read more and more of the target's prompt.

    Let s be the recorded prediction and d the total effect on it: the prediction in which every key, value and pooled text reads
    the target's prompt, minus s. A prediction p scores <p - s, d> / <d, d>: 0 for the source's and 1 for the target's. Only the
    conditional row is computed.

    In half precision, small gradients would vanish and large ones overflow. With gradients, the metric is therefore `scale` times what
    it is without; divide by it in float64.

    Args:
        graph: the model.
        step: the recorded step.
        target: the target's prompt.
        paths: the sites that move to the target's prompt; all others keep reading the source's.

    Attributes:
        length: the norm of d; 0 where the target's prompt changes nothing beyond rounding.
        rows_with_gradients: how many rows were computed with gradients so far.
        end: the metric with all moving sites at the target; NaN until it was computed without gradients.
        dtype: of the prediction.
        scale: a power of two; 1 for float32 and float64.

    Raises:
        NonFiniteActivation: a prediction is NaN or infinite.
    """

    def __init__(self, graph: HookGraph, step: StepInput, target: Conditions, paths: Collection[str]) -> None:
        self._graph = graph
        self._step = step
        self._source = step.output.double()
        self.rows_with_gradients = 0
        self.end = float("nan")
        every = ContextSwap.reading(target, graph.sites.where(role=TEXT_ROLES).paths, rows="all")
        self._swap = replace(every, paths=tuple(paths))
        with torch.no_grad():
            self._total = self._predict([[every]]) - self._source
        self.dtype = step.output.dtype
        if not torch.isfinite(self._total).all():
            raise NonFiniteActivation(f"the prediction at step {step.step} is NaN or infinite in {self.dtype}; {WIDER}")
        length = float(self._total.norm())
        self.length = length if length > _ROUNDING * float(self._source.norm()) else 0.0
        self.scale = self._first_scale() if self.length and self.dtype in HALF else 1.0

    def __call__(self, amount: Float[Tensor, "row 1"]) -> Float[Tensor, "row"]:
        """The metric of rows whose moving sites read this much of the target's prompt: from 0, none, to 1, all.

        A row with the amount t reads (1 - t) · source + t · target at every moving site. Gradients flow to the outputs of these
        sites, which is what captum needs.

        Returns:
            float64, one number a row: its share of the total effect. Divides by 0 where `length` is 0; ask before.
        """
        amounts = amount.flatten().tolist()
        swaps = {each: [replace(self._swap, strength=each)] if each else [] for each in set(amounts)}
        moved = self._predict([swaps[each] for each in amounts]) - self._source
        shares = (moved * self._total).flatten(1).sum(dim=1) / self.length**2
        if torch.is_grad_enabled():
            self.rows_with_gradients += len(amounts)
            return shares * self.scale
        if amounts[-1] == 1:
            self.end = float(shares[-1])
        return shares

    def _first_scale(self) -> float:
        """The power of two that makes the largest gradient with respect to the prediction about `_LARGEST`."""
        largest = float(self._total.abs().max()) / self.length**2
        return 2.0 ** round(math.log2(_LARGEST / largest))

    def _predict(self, changes: list[list[ContextSwap]]) -> Float[Tensor, "row channel *place"]:
        """The denoiser's predictions of the step in float64, one row for each list of changes."""
        with self._graph.apply_each(changes):
            inputs = tree_map(partial(_repeated, len(changes)), dict(self._step.inputs))
            predicted = self._graph.denoiser(**self._graph.family.spread(inputs))[0]
        return self._graph.family.noise(uncompiled(self._graph.denoiser), predicted).double()


def _repeated(rows: int, value: Any) -> Any:
    """An input of the step's one row, repeated for several rows; what all rows share, such as positions, is left as it is."""
    return value.repeat(rows, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) and value.ndim and len(value) == 1 else value
