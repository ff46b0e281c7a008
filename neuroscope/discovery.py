"""Finding a denoiser's sites and places by watching one run of it on fake tensors: order comes from what ran."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from neuroscope._errors import UnsupportedModel
from neuroscope.families import Family, SitePattern
from neuroscope.sites import Place, Site, Sites

Modules = dict[str, nn.Module]


def find_sites(family: Family, denoiser: nn.Module, modules: Modules) -> Sites:
    """The family's sites in this denoiser, in execution order.

    Raises:
        UnsupportedModel: it has none.
    """
    order: list[tuple[str, SitePattern, str, int]] = []

    def watch(path: str, block: str, pattern: SitePattern, _module: nn.Module, args: tuple, output: Any = None) -> None:
        order.append((path, pattern, block, (args[0] if pattern.before_module else output).shape[-1]))

    with ExitStack() as stack:
        for path, module in modules.items():
            for pattern in family.patterns:
                block = pattern.block_of(path)
                if block is None:
                    continue
                register = module.register_forward_pre_hook if pattern.before_module else module.register_forward_hook
                stack.callback(register(partial(watch, path, block, pattern)).remove)
        _run_fake(family, denoiser)
    if not order:
        raise UnsupportedModel(f"this {type(denoiser).__name__} has no cross-attention site; fused projections must be unfused first")
    blocks = list(dict.fromkeys(block for _, _, block, _ in order))
    return Sites(
        Site(
            path=f"{family.component}.{path}{':input' if pattern.before_module else ''}",
            layer=blocks.index(block),
            block=family.block_name(block),
            role=pattern.role,
            width=width,
            text_only=pattern.text_only,
        )
        for path, pattern, block, width in order
    )


def find_places(family: Family, denoiser: nn.Module, modules: Modules) -> tuple[Place, ...]:
    """The components that causal tracing restores, in execution order; each kind is numbered from 0."""
    found = {path: kind for path in modules for kind, pattern in family.places.items() if pattern.fullmatch(path)}
    order: list[str] = []
    with ExitStack() as stack:
        for path in found:
            stack.callback(modules[path].register_forward_hook(lambda *_, path=path: order.append(path)).remove)
        _run_fake(family, denoiser)
    numbered = [(path, found[path], sum(found[each] == found[path] for each in order[:index])) for index, path in enumerate(order)]
    return tuple(Place(f"{family.component}.{path}", kind, number, family.block_name(path)) for path, kind, number in numbered)


def row_bytes(family: Family, denoiser: nn.Module, modules: Modules, size: tuple[int, int]) -> int:
    """An upper bound of the memory that one row of latents [height, width] takes: all modules' outputs together."""
    total = 0

    def add(_module: nn.Module, _args: tuple, output: Any) -> None:
        nonlocal total
        total += output.numel() * output.element_size() if isinstance(output, Tensor) else 0

    with ExitStack() as stack:
        for module in modules.values():
            if not any(module.children()):
                stack.callback(module.register_forward_hook(add).remove)
        _run_fake(family, denoiser, size)
    return total


def _run_fake(family: Family, denoiser: nn.Module, size: tuple[int, int] | None = None) -> None:
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        run: Callable[..., Any] = getattr(denoiser, "_orig_mod", denoiser).forward  # the denoiser's own hooks are for real runs
        run(**family.inputs(denoiser, size))
