"""One call of a hooked module: which step of the schedule it belongs to and which rows carry the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuroscope.core.conditions import BatchLayout, Conditions
from neuroscope.core.intervention import Call
from neuroscope.core.sites import Site
from neuroscope.pipeline.guidance import GuidanceListener


class StepState(NamedTuple):
    """Where in a run a call of the denoiser lies: see `Call`."""

    step: int | None
    steps: int | None
    layout: BatchLayout | None


#: The denoiser's arguments, as its call binds them, by the names of its parameters.
Bind = Callable[[tuple[Any, ...], Mapping[str, Any]], Mapping[str, Any]]


class Clock:
    """Knows the current denoising step from the pipeline's schedule, whatever the number of denoiser calls a step takes.

    Args:
        listener: what is heard of the pipeline's runs.
        bind: names the arguments of the denoiser's calls: "latents", "timestep" and "context".
        dtype: the number format in which the denoiser computes.
        beside: see `Call`.

    Attributes:
        ticks: the denoiser's calls so far.
        now: where the current call of the denoiser lies.
    """

    def __init__(self, listener: GuidanceListener, bind: Bind, dtype: Callable[[], torch.dtype], beside: int = 0) -> None:
        self.ticks = 0
        self.now = StepState(None, None, None)
        self._listener = listener
        self._bind = bind
        self._dtype = dtype
        self._beside = beside
        self._device: torch.device | None = None

    def tick(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the denoiser."""
        self.ticks += 1
        given = self._bind(args, kwargs)
        self._device = given["latents"].device
        run = self._listener.run
        if run is None:
            self.now = StepState(None, None, None)
            return
        timestep = given["timestep"]
        step, steps = run.step(float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep))
        self.now = StepState(step, steps, run.layout(given["context"]))

    def place(self) -> tuple[torch.device | None, torch.dtype]:
        """The device and the number format in which the denoiser computes."""
        return self._device, self._dtype()

    def call(self, site: Site, project: Callable[[Tensor], Tensor], read: Callable[[Conditions, int], Tensor]) -> Call:
        """What a hook is told about the current call."""
        return Call(site, *self.now, project, read, self._beside)
