"""The attention of one layer, computed again with other keys and values and otherwise the same inputs."""

from __future__ import annotations

from collections.abc import Callable
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
from neuroscope.pipeline.hooking.hook import Hook


@dataclass(frozen=True, eq=False)
class LocalAttention:
    """The attention of one layer inside a running denoiser, with its inputs.

    Attributes:
        graph: the model.
        layer: the layer's number.
        module: the attention.
        args, kwargs: its inputs.
    """

    graph: HookGraph
    layer: int | None
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def output(self) -> Float[Tensor, "row ... channel"]:
        """The output of the layer, unchanged."""
        return self._again([])

    def of(self, conditions: Conditions) -> Float[Tensor, "row ... channel"]:
        """The output where its keys and values read these conditions."""

        def read(site: Site, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            other = self.graph.text.read(site, conditions).to(args[0])
            beside = args[0][:, args[0].shape[1] - self.graph.family.tokens_beside :]
            return (torch.cat([other.expand(len(beside), *other.shape[1:]), beside], dim=1), *args[1:])

        sites = {role: self._site(role) for role in ("key", "value")}
        beside = self.graph.text.attention_arguments(conditions)
        given = {name: value.to(own) for name, value in beside.items() if (own := self.kwargs.get(name)) is not None}
        hooks = [self._module(role).register_forward_pre_hook(Hook(partial(read, site))) for role, site in sites.items()]
        return self._again(hooks, given)

    def from_tokens(self, tokens: Bool[Tensor, "token"]) -> Float[Tensor, "row ... channel"]:
        """The part of the output that comes from the values of some tokens of the prompt."""
        site = self._site("value")

        def only(kept: Tensor, _module: nn.Module, _args: tuple[Any, ...], values: Tensor) -> Tensor:
            here = self.graph.text.positions(site, tokens, values.shape[1]) & kept
            return values * here.to(values)[:, None]

        with_them, without = (
            self._again([self._module("value").register_forward_hook(Hook(partial(only, kept)))])
            for kept in (torch.tensor(True), torch.tensor(False))
        )
        return with_them - without

    def _again(self, handles: list[Any], given: dict[str, Tensor] | None = None) -> Tensor:
        """The output with these hooks, which are removed afterwards, and with other arguments of these names."""
        found: list[Tensor] = []
        with ExitStack() as stack:
            keep = Hook(lambda _module, _args, output: found.append(output))
            projects = self.graph.sites.where(layer=self.layer, role="output")
            for handle in (*handles, *(self.graph.module(site).register_forward_hook(keep) for site in projects)):
                stack.callback(handle.remove)
            whole = self.module.forward(*self.args, **(self.kwargs | (given or {})))
        return found[0] if found else self._projected(whole)

    def _projected(self, both: Tensor) -> Tensor:
        """What the image's rows of text and image add to its stream, where a module of the block reads them with other things beside."""
        site = self._site("value")
        path = self.graph.family.pattern(site.role, site.module).beside(site.module, "proj_out")
        weight: Tensor = uncompiled(self.graph.denoiser).get_submodule(path).weight[:, : site.width]
        return both[:, self.graph.text.token_count or 0 :] @ weight.T.to(both)

    def _site(self, role: str) -> Site:
        (site,) = self.graph.sites.where(layer=self.layer, role=role)
        return site

    def _module(self, role: str) -> nn.Module:
        return self.graph.module(self._site(role))


@torch.no_grad()
def for_each_attention(forcing: TeacherForcing, step: StepInput, measure: Callable[[LocalAttention], Any]) -> list[Any]:
    """Measures the attention of every layer, in one call of the denoiser on a recorded step.

    The cost that `measure` adds is counted in `TeacherForcing.nfe`, as its share of a row's floating-point operations.

    Args:
        forcing: the model, and its cost.
        step: the recorded step.
        measure: called with each layer's attention.

    Returns:
        What `measure` returned, in the order of the layers.
    """
    graph, added = forcing.graph, 0
    found: list[Any] = []
    denoiser = uncompiled(graph.denoiser)

    def call(layer: int | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        nonlocal added
        before = counter.get_total_flops()
        found.append(measure(LocalAttention(graph, layer, module, args, kwargs)))
        added += counter.get_total_flops() - before

    with FlopCounterMode(display=False) as counter, ExitStack() as stack:
        for site in graph.sites.where(role="key"):
            attention = denoiser.get_submodule(site.module.rpartition(".")[0])
            stack.callback(attention.register_forward_hook(Hook(partial(call, site.layer)), with_kwargs=True).remove)
        graph.denoiser(**graph.family.spread(step.inputs))
    forcing.nfe += added / (counter.get_total_flops() - added)
    return found
