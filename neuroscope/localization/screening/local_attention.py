"""One layer's attention, computed again with other keys and values while all that it is given besides stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neuroscope.core.conditions import Conditions
from neuroscope.core.sites import Site
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.hook import Hook


@dataclass(frozen=True, eq=False)
class LocalAttention:
    """The attention of a layer inside a running denoiser, with what it was given."""

    graph: HookGraph
    layer: int | None
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def output(self) -> Float[Tensor, "row place channel"]:
        """What it puts out as it is."""
        return self._again([])

    def of(self, conditions: Conditions) -> Float[Tensor, "row place channel"]:
        """What it puts out where its keys and values read these conditions."""

        def read(site: Site, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self.graph.text.read(site, conditions).to(args[0]), *args[1:])

        sites = {role: self._site(role) for role in ("key", "value")}
        return self._again([self._module(role).register_forward_pre_hook(Hook(partial(read, site))) for role, site in sites.items()])

    def from_tokens(self, tokens: Bool[Tensor, "token"]) -> Float[Tensor, "row place channel"]:
        """The part of what it puts out that comes from the values of these tokens of the prompt."""

        def only(kept: Tensor, _module: nn.Module, _args: tuple[Any, ...], values: Tensor) -> Tensor:
            return values * kept.to(values)[:, None]

        with_them, without = (
            self._again([self._module("value").register_forward_hook(Hook(partial(only, kept)))])
            for kept in (tokens, torch.zeros_like(tokens))
        )
        return with_them - without

    def _again(self, handles: list[Any]) -> Tensor:
        found: list[Tensor] = []
        with ExitStack() as stack:
            keep = Hook(lambda _module, _args, output: found.append(output))
            for handle in (*handles, self._module("output").register_forward_hook(keep)):
                stack.callback(handle.remove)
            self.module.forward(*self.args, **self.kwargs)
        return found[0]

    def _site(self, role: str) -> Site:
        (site,) = self.graph.sites.where(layer=self.layer, role=role)
        return site

    def _module(self, role: str) -> nn.Module:
        return self.graph.module(self._site(role))


@torch.no_grad()
def visit(forcing: TeacherForcing, frame: StepInput, look: Callable[[LocalAttention], Any]) -> list[Any]:
    """What `look` sees of every layer's attention, in the layers' order, in one call of the denoiser on a frame.

    What it computes again is counted as the share of a row's floating-point operations that it takes.
    """
    graph, again = forcing.graph, 0
    found: list[Any] = []
    denoiser = uncompiled(graph.denoiser)

    def see(layer: int | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        nonlocal again
        before = counter.get_total_flops()
        found.append(look(LocalAttention(graph, layer, module, args, kwargs)))
        again += counter.get_total_flops() - before

    with FlopCounterMode(display=False) as counter, ExitStack() as stack:
        for site in graph.sites.where(role="key"):
            attention = denoiser.get_submodule(site.module.rpartition(".")[0])
            stack.callback(attention.register_forward_hook(Hook(partial(see, site.layer)), with_kwargs=True).remove)
        graph.denoiser(**frame.inputs)
    forcing.rows += again / (counter.get_total_flops() - again)
    return found
