"""Listening to a pipeline: whether a call of its denoiser belongs to a run of its own, and whether that run is guided.

Several pipelines may share one denoiser, and some keep their guidance in a local variable. Every pipeline's call begins
with its own `encode_prompt` and ends with `maybe_free_model_hooks`; inside a block these two are listened to, on the one
pipeline object.

Compiled code does not see hooks that came after it, so inside a block it is not used.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from neuroscope.families import BEGIN, END


class Ears:
    """What was heard of a pipeline's runs.

    Attributes:
        heard: whether the run that goes on was begun with guidance; None between runs.
        listeners: how many blocks are open.
    """

    def __init__(self) -> None:
        self.heard: bool | None = None
        self.listeners = 0

    def guided(self, pipe: Any) -> bool | None:
        """Whether batches hold unconditional rows now; None outside the pipeline's own runs."""
        if self.heard is None:
            return None
        if hasattr(pipe, "_guidance_scale"):  # what a run was begun with may be changed while it runs
            return bool(pipe.do_classifier_free_guidance)
        return self.heard


_EARS: WeakKeyDictionary[Any, Ears] = WeakKeyDictionary()


@contextmanager
def listening(pipe: Any) -> Iterator[Ears]:
    """Hears the beginnings and ends of this pipeline's runs inside the block; blocks may end in any order."""
    ears = _EARS.setdefault(pipe, Ears())
    if not ears.listeners:
        for name, wrap in ((BEGIN, _begins), (END, _ends)):
            setattr(pipe, name, wrap(ears, getattr(pipe, name)))
    ears.listeners += 1
    try:
        yield ears
    finally:
        ears.listeners -= 1
        if not ears.listeners:
            for name in (BEGIN, END):
                delattr(pipe, name)
            del _EARS[pipe]


class _Stance:
    """How torch.compile behaves in this process, while blocks are open."""

    def __init__(self) -> None:
        self.blocks = 0
        self.lock = threading.Lock()
        self.former: Any = None


_STANCE = _Stance()


@contextmanager
def running_eagerly() -> Iterator[None]:
    """Inside the block compiled functions and modules run as they were written; blocks may end in any order."""
    with _STANCE.lock:
        if not _STANCE.blocks:
            _STANCE.former = torch.compiler.set_stance("force_eager")
        _STANCE.blocks += 1
    try:
        yield
    finally:
        with _STANCE.lock:
            _STANCE.blocks -= 1
            if not _STANCE.blocks:
                _STANCE.former.__exit__(None, None, None)


def unheard(pipe: Any) -> Callable[..., Any]:
    """The pipeline's `encode_prompt`, for texts that are no beginning of a run."""
    return functools.partial(type(pipe).encode_prompt, pipe)


def _begins(ears: Ears, method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def begin(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options)
        given.apply_defaults()
        ears.heard = bool(given.arguments["do_classifier_free_guidance"])
        return method(*args, **options)

    return begin


def _ends(ears: Ears, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def end(*args: Any, **options: Any) -> Any:
        ears.heard = None
        return method(*args, **options)

    return end
