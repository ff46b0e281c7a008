"""Folding: writing interventions into a model's weights, and taking them out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from neuroscope._errors import InvalidInput, UnsupportedModel
from neuroscope.editing.weights import updates_of
from neuroscope.graph import HookGraph
from neuroscope.interventions import Intervention


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
        return f"Folded({', '.join(type(each).__name__ for each in self._changes)}: {state} {len(self._before)} weights)"

    def restore(self) -> None:
        """Puts the former weights back, bit by bit; does nothing the second time.

        Raises:
            InvalidInput: a weight was changed since, such as by another fold; restore that one first.
        """
        if not self._active:
            return
        for name, after in self._after.items():
            with _weight(self._graph.denoiser, name) as weight:
                if not torch.equal(weight.cpu(), after):
                    raise InvalidInput(f"{name} was changed after this was folded; take out later changes first, in reverse order")
        for name, before in self._before.items():
            with _weight(self._graph.denoiser, name) as weight:
                weight.copy_(before)
        self._active = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()


@torch.no_grad()
def fold(graph: HookGraph, *changes: Intervention) -> Folded:
    """Writes interventions into the weights, so that the pipeline runs changed without any hook.

    Composed as in `apply`, computed in float64 and rounded once to the weights' format.

    Raises:
        InvalidInput: a change that weights cannot hold: conditional rows, chosen tokens, a part of the schedule, a swap.
        UnsupportedModel: weights that cannot be written: behind a LoRA, quantised, or resting in 8 bits.
    """
    if not changes:
        raise InvalidInput("there is nothing to fold; give at least one intervention")
    updates = updates_of(graph, changes)
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for path, update in updates.items():
        for name, delta in ((f"{path}.weight", update.delta), (f"{path}.bias", update.bias)):
            if delta is None:
                continue
            with _weight(graph.denoiser, name) as weight:
                before[name] = weight.detach().cpu().clone()
                changed = torch.where(delta == 0, before[name], (before[name].double() + delta).to(weight.dtype))
                after[name] = changed
    for name, changed in after.items():
        with _weight(graph.denoiser, name) as weight:
            weight.copy_(changed)
    return Folded(graph, changes, before, after)


@contextmanager
def _weight(denoiser: Any, name: str) -> Iterator[Tensor]:
    """A weight to read and write in place, also where it rests elsewhere between calls."""
    path, _, kind = name.rpartition(".")
    module: nn.Module = getattr(denoiser, "_orig_mod", denoiser).get_submodule(path)
    resting = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    if getattr(module, kind).device.type == "meta" and resting is None:
        raise UnsupportedModel(f"{name} has no values here; load the model before folding into it")
    with torch.no_grad(), align_module_device(module):
        weight = getattr(module, kind).data
        yield weight
        if resting is not None:
            resting[kind].copy_(weight)
