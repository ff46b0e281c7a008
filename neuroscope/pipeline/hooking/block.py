"""Blocks: context managers that warn where they are made and never entered, because nothing happens then."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

Given = TypeVar("Given")
Parameters = ParamSpec("Parameters")


class Block(contextlib.ContextDecorator, contextlib.AbstractContextManager[Given], Generic[Given]):
    """What a method decorated with `block` gives: a context manager, or a decorator, like those of `contextlib.contextmanager`."""

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Given]], name: str) -> None:
        self._make = make
        self._name = name
        self._inner: contextlib.AbstractContextManager[Given] | None = None

    def __enter__(self) -> Given:
        self._inner = self._make()
        return self._inner.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        return self._inner.__exit__(kind, error, trace) if self._inner else None

    def __del__(self) -> None:
        if self._inner is None and not getattr(self, "_decorates", False):
            warnings.warn(
                f"{self._name}(...) was never entered, so it did nothing; write `with graph.{self._name}(...):` and run the pipeline "
                "inside",
                UserWarning,
                stacklevel=2,
            )

    def _recreate_cm(self) -> Block[Given]:
        """For every call of a decorated function a block of its own; see `contextlib.ContextDecorator`."""
        self._decorates = True
        return Block(self._make, self._name)


def block(method: Callable[Parameters, Iterator[Given]]) -> Callable[Parameters, Block[Given]]:
    """Makes a context manager of a generator function, as `contextlib.contextmanager` does."""
    manager: Any = contextlib.contextmanager(method)

    @functools.wraps(method)
    def make(*args: Parameters.args, **options: Parameters.kwargs) -> Block[Given]:
        return Block(functools.partial(manager, *args, **options), method.__name__)

    return make
