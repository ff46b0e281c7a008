"""Counting the cost of what runs: NFE, time and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from neuroscope.core.results.quality import Cost
from neuroscope.pipeline.families import family_of_denoiser

#: By denoiser the meters of the blocks that are open.
_RUNNING: WeakKeyDictionary[nn.Module, list[Meter]] = WeakKeyDictionary()


class Meter:
    """Counts while a `metered` block runs; `cost` is what it has cost so far.

    Args:
        latents: what the denoiser's call calls its latents, of which it has one a row.
        tell: called with the cost at each call of the denoiser.
    """

    def __init__(self, latents: str, tell: Callable[[Cost], None] | None = None) -> None:
        self._latents = latents
        self._start = time.perf_counter()
        self._rows: int | float = 0
        self._tell = tell

    @property
    def cost(self) -> Cost:
        """The cost from the block's beginning until now."""
        return Cost(self._rows, time.perf_counter() - self._start, _peak_bytes())

    def count(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        """Forward hook of the denoiser, which sees rows that a change has added as well."""
        self.add(len(args[0] if args else kwargs[self._latents]))

    def add(self, rows: int | float) -> None:
        """Counts rows of the denoiser."""
        self._rows += rows
        if self._tell is not None:
            self._tell(self.cost)


@contextmanager
def metered(denoiser: nn.Module, tell: Callable[[Cost], None] | None = None) -> Iterator[Meter]:
    """Counts the denoiser's rows, the time and the memory of what runs inside the block, and tells the cost at each call."""
    meter = Meter(family_of_denoiser(denoiser).arguments["latents"], tell)
    handle = denoiser.register_forward_hook(meter.count, with_kwargs=True)
    running = _RUNNING.setdefault(denoiser, [])
    running.append(meter)
    try:
        yield meter
    finally:
        running.remove(meter)
        handle.remove()


def count_elsewhere(denoiser: nn.Module, rows: int | float) -> None:
    """Counts rows that replicas of a denoiser have computed in other processes, in every block that counts its own."""
    for meter in _RUNNING.get(denoiser, ()):
        meter.add(rows)


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
