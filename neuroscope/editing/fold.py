"""Folding: writing interventions into a model's weights, and taking them out again."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.intervention import Intervention
from neuroscope.editing.updates import updates_of
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.weights import read_parameter, write_parameter


class Folded:
    """Interventions that were written into weights; `restore` takes them out bit by bit, as does leaving a `with` block."""

    def __init__(self, graph: HookGraph, changes: Sequence[Intervention], before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        self._graph = graph
        self._changes = changes
        self._before = before
        self._after = after
        self._active = True

    def __repr__(self) -> str:
        state = "in" if self._active else "taken out of"
        return f"Folded({', '.join(type(each).__name__ for each in self._changes)}: {state} {counted(len(self._before), 'weight')})"

    def restore(self) -> None:
        """Puts the former weights back, bit by bit; does nothing the second time.

        One that was interrupted is finished by calling it again.

        Raises:
            InvalidInput: a weight was changed since, such as by another fold; restore that one first.
        """
        if not self._active:
            return
        root = uncompiled(self._graph.denoiser)
        for name, after in self._after.items():
            now = read_parameter(root, name)
            if not _same_bits(now, after) and not _same_bits(now, self._before[name]):
                raise InvalidInput(f"{name} was changed after this was folded; take out later changes first, in reverse order")
        for name, before in self._before.items():
            write_parameter(root, name, before)
        self._active = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()


@torch.no_grad()
def fold(graph: HookGraph, *changes: Intervention) -> Folded:
    """Writes interventions into the weights, so that the pipeline runs changed without any hook.

    Composed as in `apply`, computed in float64 and rounded once to the weights' format. Whatever interrupts the writing, all
    weights are then as they were before.

    Args:
        graph: the model that is changed.
        *changes: in the order in which they act.

    Returns:
        What takes the changes out again; as a context manager it does so at the end of the block.

    Raises:
        InvalidInput: a change that weights cannot hold: conditional rows, chosen tokens, a part of the schedule, a swap, or
            numbers too large for their format.
        UnsupportedModel: weights that cannot be written: behind a LoRA, quantised, or resting in 8 bits.
    """
    if not changes:
        raise InvalidInput("there is nothing to fold; give at least one intervention")
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    for change in changes:
        checks.instance("one of the changes", change, Intervention, "ns.fold(graph, mask, edit), one after the other")
    root = uncompiled(graph.denoiser)
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for path, update in updates_of(graph, changes).items():
        for name, delta in ((f"{path}.weight", update.delta), (f"{path}.bias", update.bias)):
            if delta is not None:
                before[name] = read_parameter(root, name).clone()
                after[name] = _changed(name, before[name], delta)
    _write_all(root, after, before)
    return Folded(graph, changes, before, after)


def _changed(name: str, before: Tensor, delta: Tensor) -> Tensor:
    """A parameter plus a change, rounded once to the parameter's format; values whose change is 0 keep their bits.

    Raises:
        InvalidInput: a value would overflow the format.
    """
    after = torch.where(delta == 0, before, (before.double() + delta).to(before.dtype))
    if (torch.isfinite(before) & ~torch.isfinite(after)).any():
        raise InvalidInput(f"the change of {name} is too large for {before.dtype}; make it weaker, or load the model in a wider format")
    return after


def _write_all(root: nn.Module, values: dict[str, Tensor], former: dict[str, Tensor]) -> None:
    """Writes all parameters or, whatever interrupts it, none."""
    begun: list[str] = []
    try:
        for name, value in values.items():
            begun.append(name)
            write_parameter(root, name, value)
    except BaseException:
        for name in begun:
            _put_back(root, name, former[name])
        raise


def _put_back(root: nn.Module, name: str, value: Tensor, attempts: int = 3) -> None:
    """Writes a parameter although it may be interrupted again."""
    try:
        write_parameter(root, name, value)
    except BaseException:
        if attempts == 1:
            raise
        _put_back(root, name, value, attempts - 1)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same bits; NaN then equals itself, and 0 does not equal -0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    one, other = (each.contiguous().reshape(-1).view(torch.uint8) for each in (first, second))
    return torch.equal(one, other)
