"""One call of a hooked module: which step of the schedule it belongs to and which rows carry the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuroscope.core.conditions import BatchLayout, Conditions, Part
from neuroscope.core.intervention import Call
from neuroscope.core.sites import Site
from neuroscope.pipeline.hooking.guidance import GuidanceListener
from neuroscope.pipeline.hooking.text_streams import TextStreams

_UNKNOWN = BatchLayout((None,))
_OTHER: tuple[Part, ...] = ("other",)


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
        bind: names the arguments of the denoiser's calls: "latents", "timestep" and "context", and their "frames".
        dtype: the number format in which the denoiser computes.
        beside: see `Call`.

    Attributes:
        ticks: the denoiser's calls so far.
        now: where the current call of the denoiser lies.
        frames: how many rows each image has at sites, side by side; see `Family.frames`.
    """

    def __init__(self, listener: GuidanceListener, bind: Bind, dtype: Callable[[], torch.dtype], beside: int = 0) -> None:
        self.ticks = 0
        self.now = StepState(None, None, None)
        self.frames = 1
        self._listener = listener
        self._bind = bind
        self._dtype = dtype
        self._beside = beside
        self._device: torch.device | None = None
        #: By the number of a block, how many calls left it out.
        self.skipped: Counter[int] = Counter()

    @property
    def streams(self) -> TextStreams:
        """What is known of a text that blocks rewrite."""
        return self._listener.streams

    def tick(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the denoiser."""
        self.ticks += 1
        given = self._bind(args, kwargs)
        self._device = given["latents"].device
        self.frames = given["frames"]
        self.skipped.update(given.get("skipped") or ())
        self.streams.begin(given["context"].shape[1])
        run, others = self._listener.run, _OTHER * self.streams.others
        if run is None:
            self.now = StepState(None, None, BatchLayout(_UNKNOWN.parts + others) if others else None)
            return
        timestep = given["timestep"]
        step, steps = run.step(float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep))
        own = (self.streams.layout or _UNKNOWN) if others else run.layout(given["context"], self.frames)
        self.now = StepState(step, steps, BatchLayout((*own.parts, *others)))

    def add_others(self, count: int) -> None:
        """Notes that so many parts of rows that make no image were added to the call that goes on."""
        step, steps, layout = self.now
        self.now = StepState(step, steps, BatchLayout((layout or _UNKNOWN).parts + _OTHER * count))

    def place(self) -> tuple[torch.device | None, torch.dtype]:
        """The device and the number format in which the denoiser computes."""
        return self._device, self._dtype()

    def call(self, site: Site, project: Callable[[Tensor], Tensor], read: Callable[[Conditions, int], Tensor]) -> Call:
        """What a hook is told about the current call."""
        return Call(site, *self.now, project, read, self._beside)
