"""Gradient checkpointing: what a denoiser's blocks give is computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from neuroscope.pipeline.families import Family

_MARKS = ("gradient_checkpointing", "_gradient_checkpointing_func")
_again: ContextVar[bool] = ContextVar("again", default=False)


def is_recomputed() -> bool:
    """Whether modules run a second time now, for a backward pass: their hooks act again, and count no run."""
    return _again.get()


def can_recompute(family: Family, denoiser: nn.Module) -> bool:
    """Whether the model has gradient checkpointing that works."""
    is_supported = family.recomputes and bool(getattr(denoiser, "_supports_gradient_checkpointing", False))
    return is_supported and any(hasattr(each, _MARKS[0]) for each in denoiser.modules())


@contextmanager
def recomputed(denoiser: nn.Module) -> Iterator[None]:
    """Inside the block the denoiser's blocks are computed again in a backward pass; then it is as it was before."""
    marked = [each for each in denoiser.modules() if hasattr(each, _MARKS[0])]
    before = [{name: vars(each)[name] for name in _MARKS if name in vars(each)} for each in marked]
    model: Any = denoiser
    model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=_contexts))
    try:
        yield
    finally:
        for module, state in zip(marked, before, strict=True):
            for name in _MARKS:
                vars(module).pop(name, None)
            vars(module).update(state)


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The blocks around a module's first run and around its second, as `checkpoint` asks for them."""
    return nullcontext(), _second()


@contextmanager
def _second() -> Iterator[None]:
    before = _again.set(True)
    try:
        yield
    finally:
        _again.reset(before)
