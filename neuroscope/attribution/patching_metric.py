"""The way from one prompt to another at a single prediction, as a function that gradients can be taken of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from neuroscope.core.conditions import Conditions
from neuroscope.generation.teacher_forcing import StepInput
from neuroscope.interventions import ContextSwap
from neuroscope.pipeline.graph import HookGraph

_TEXT = ("key", "value", "pooled")
_ROUNDING = 1e-5


class PatchingMetric:
    """How far a frame's prediction goes towards the other prompt's when some sites read more and more of that prompt.

    The whole way is `d`, from the frame's prediction to the one in which every key, value and pooled text reads the other
    prompt; the share is `<prediction - frame's, d> / <d, d>`. Only the row that carries the prompt is computed.

    Args:
        graph: the model.
        frame: where in which run.
        other: what the other prompt says.
        moving: the paths of the sites that move; all others keep reading the run's own prompt.

    Attributes:
        length: the norm of `d`; 0 where the other prompt changes nothing.
        differentiated: how many rows were computed with gradients so far.
        end: the share at the other end, once it was computed without gradients; NaN before.
    """

    def __init__(self, graph: HookGraph, frame: StepInput, other: Conditions, moving: Collection[str]) -> None:
        self._graph = graph
        self._frame = frame
        self._source = frame.output.double()
        self.differentiated = 0
        self.end = float("nan")
        every = ContextSwap(graph.sites.where(role=_TEXT).paths, other.context, rows="all", pooled=other.pooled)
        self._swap = replace(every, paths=tuple(moving))
        with torch.no_grad():
            self._way = self._predict([[every]]) - self._source
        reached = float(self._way.norm())
        self.length = reached if reached > _ROUNDING * float(self._source.norm()) else 0.0

    def __call__(self, amount: Float[Tensor, "row 1"]) -> Float[Tensor, "row"]:
        """The share of the way for rows whose moving sites read so much of the other prompt: 0 none, 1 all."""
        amounts = amount.flatten().tolist()
        swaps = {each: [replace(self._swap, strength=each)] if each else [] for each in set(amounts)}
        moved = self._predict([swaps[each] for each in amounts]) - self._source
        shares = (moved * self._way).flatten(1).sum(dim=1) / self.length**2
        if torch.is_grad_enabled():
            self.differentiated += len(amounts)
        elif amounts[-1] == 1:
            self.end = float(shares[-1])
        return shares

    def _predict(self, changes: list[list[ContextSwap]]) -> Float[Tensor, "row channel height width"]:
        with self._graph.apply_each(changes):
            predicted = self._graph.denoiser(**tree_map(partial(_repeated, len(changes)), dict(self._frame.inputs)))[0]
        return self._graph.family.noise(predicted).double()


def _repeated(rows: int, value: Any) -> Any:
    """What the frame's one row reads, for so many rows."""
    return value.expand(rows, *value.shape[1:]) if isinstance(value, Tensor) and value.ndim else value
