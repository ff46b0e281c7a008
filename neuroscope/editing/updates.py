"""The exact linear updates that interventions stand for, composed in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.core.errors import UnsupportedModel
from neuroscope.core.intervention import Intervention
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.weights import is_plain, read_parameter

#: The current values of a parameter by its name inside the denoiser, such as "….to_v.weight" [out, in], in float64.
Weights = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class LinearUpdate:
    """A low-rank change of one linear module: `weight + left @ right`, `bias + bias`.

    Attributes:
        module: the module's path inside the denoiser.
        left: float64 [out, rank].
        right: float64 [rank, in].
        bias: float64 [out], or None.
    """

    module: str
    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]
    bias: Float[Tensor, "out"] | None = None

    @property
    def delta(self) -> Float[Tensor, "out in"]:
        """The change of the weight."""
        return self.left @ self.right


_FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def updates_of(graph: HookGraph, changes: Sequence[Intervention]) -> dict[str, LinearUpdate]:
    """One update a changed module, equal to applying the changes in this order.

    A change of a site must see what is done to its result, so the last site and the last change come first. Only what
    is done behind a module, at "output" sites, comes in order.

    Raises:
        InvalidInput: a change that weights cannot hold.
        UnsupportedModel: weights that cannot be read or written, or that the denoiser does not use now.
    """
    graph.family.refuse_unknown(graph.pipe)
    for change in changes:
        change.check(graph)
        change.expect_foldable()
    steps = [(site, change) for site in graph.sites for change in changes if site.path in change.paths]
    behind, inside = ([step for step in steps if (step[0].role == "output") is last] for last in (True, False))
    reader = _Reader(uncompiled(graph.denoiser))
    for site, change in [*reversed(inside), *behind]:
        for update in change.linear_updates(graph, site, reader):
            reader.add(update)
    return reader.updates


class _Reader:
    """The current values of parameters in float64, with the updates so far."""

    def __init__(self, root: nn.Module) -> None:
        self.updates: dict[str, LinearUpdate] = {}
        self._root = root
        self._first: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        path, _, kind = name.rpartition(".")
        if name not in self._first:
            self._first[name] = self._load(path, kind)
        update = self.updates.get(path)
        delta = (update.delta if kind == "weight" else update.bias) if update else None
        return self._first[name] if delta is None else self._first[name] + delta

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

    def _load(self, path: str, kind: str) -> Tensor:
        module: Any = self._root.get_submodule(path)
        if hasattr(module, "base_layer"):
            raise UnsupportedModel(f"{path} carries a LoRA; unload it, or fuse it with `pipe.fuse_lora()`, before weights are changed")
        if not is_plain(module) or module.weight.dtype not in _FORMATS:
            what = f"{type(module).__name__} of {getattr(module.weight, 'dtype', 'unknown format')}"
            raise UnsupportedModel(f"{path} is a {what}, which cannot be changed exactly; load the model in a floating-point format")
        if getattr(module, kind) is None:
            raise UnsupportedModel(f"{path} has no {kind}, which the change needs; apply the change instead")
        return read_parameter(self._root, f"{path}.{kind}").double()
