"""The exact linear updates that interventions stand for, composed in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from neuroscope._errors import UnsupportedModel
from neuroscope.graph import HookGraph
from neuroscope.interventions import Intervention, LinearUpdate

_FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def updates_of(graph: HookGraph, changes: Sequence[Intervention]) -> dict[str, LinearUpdate]:
    """One update a changed module; a later intervention sees the weights that the earlier ones left.

    Changes of a site's input come before changes of its output, as in `HookGraph.apply`.

    Raises:
        InvalidInput: a change that weights cannot hold.
        UnsupportedModel: weights that cannot be read or written.
    """
    for change in changes:
        change.check(graph)
    reader = _Reader(graph.denoiser)
    for change in sorted(changes, key=lambda each: not each.changes_input):
        for update in list(change.linear_updates(graph, reader)):
            reader.add(update)
    return reader.updates


class _Reader:
    """The current weights in float64, with the updates so far."""

    def __init__(self, denoiser: Any) -> None:
        self.updates: dict[str, LinearUpdate] = {}
        self._root: nn.Module = getattr(denoiser, "_orig_mod", denoiser)
        self._first: dict[str, Tensor] = {}

    def __call__(self, path: str) -> Tensor:
        if path not in self._first:
            self._first[path] = self._load(path)
        return self._first[path] + self.updates[path].delta if path in self.updates else self._first[path]

    def add(self, update: LinearUpdate) -> None:
        """Puts an update behind those of the same module."""
        before = self.updates.get(update.module)
        if before is None:
            self.updates[update.module] = update
            return
        biases = [each for each in (before.bias, update.bias) if each is not None]
        bias = torch.stack(biases).sum(dim=0) if biases else None
        left, right = torch.cat([before.left, update.left], dim=1), torch.cat([before.right, update.right])
        self.updates[update.module] = LinearUpdate(update.module, left, right, bias)

    def _load(self, path: str) -> Tensor:
        module = self._root.get_submodule(path)
        if hasattr(module, "base_layer"):
            raise UnsupportedModel(f"{path} carries a LoRA; unload it, or fuse it with `pipe.fuse_lora()`, before weights are changed")
        if not isinstance(module, nn.Linear) or module.weight.dtype not in _FORMATS:
            kind = f"{type(module).__name__} of {getattr(module.weight, 'dtype', 'unknown format')}"
            raise UnsupportedModel(f"{path} is a {kind}, which cannot be changed exactly; load the model in a floating-point format")
        with align_module_device(module):
            return module.weight.detach().to("cpu", torch.float64)
