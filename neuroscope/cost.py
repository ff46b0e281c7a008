"""What a computation costs: denoiser rows, time and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neuroscope._checks import finite, whole


@dataclass(frozen=True)
class Cost:
    """What a computation cost.

    Attributes:
        rows: denoiser row evaluations: one row of a batch through the denoiser once. Exact, and the same on every machine. A row
            that begins midway counts as the share of a row's floating-point operations that it runs.
        seconds: wall time.
        peak_bytes: the highest memory in use so far: of the accelerator, or on the CPU of the whole process.

    Raises:
        InvalidInput: a number that is negative or not finite.
    """

    rows: int | float = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        finite("the cost's rows", self.rows, least=0)
        finite("the cost's seconds", self.seconds, least=0)
        whole("the cost's peak_bytes", self.peak_bytes, least=0)

    def __str__(self) -> str:
        return f"{self.rows:,.0f} denoiser rows, {self.seconds:.1f} s, peak {self.peak_bytes / 2**30:.2f} GiB"

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.rows + other.rows, self.seconds + other.seconds, max(self.peak_bytes, other.peak_bytes))


class Meter:
    """Counts while a `metered` block runs; `cost` is what it has cost so far.

    Args:
        tell: called with the cost at each call of the denoiser.
    """

    def __init__(self, tell: Callable[[Cost], None] | None = None) -> None:
        self._start = time.perf_counter()
        self._rows = 0
        self._tell = tell

    @property
    def cost(self) -> Cost:
        """The cost from the block's beginning until now."""
        return Cost(self._rows, time.perf_counter() - self._start, _peak_bytes())

    def count(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the denoiser."""
        self._rows += len(args[0] if args else kwargs["sample"])
        if self._tell is not None:
            self._tell(self.cost)


@contextmanager
def metered(denoiser: nn.Module, tell: Callable[[Cost], None] | None = None) -> Iterator[Meter]:
    """Counts the denoiser's rows, the time and the memory of what runs inside the block, and tells the cost at each call."""
    meter = Meter(tell)
    handle = denoiser.register_forward_pre_hook(meter.count, with_kwargs=True)
    try:
        yield meter
    finally:
        handle.remove()


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
