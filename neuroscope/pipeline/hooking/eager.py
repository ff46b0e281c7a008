"""Running compiled modules as they were written, so that hooks on what they hold are called."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
