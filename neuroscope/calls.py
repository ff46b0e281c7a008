"""One call of a hooked module: which step of the schedule it belongs to and which rows carry the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from neuroscope._errors import InvalidInput
from neuroscope.conditions import Conditions
from neuroscope.running import Ears
from neuroscope.sites import Site

Rows = Literal["all", "conditional"]
_ROUNDING = 1e-9  # so that step 15 of 50 is not before 3 * 0.1


@dataclass(frozen=True)
class Call:
    """One call of a site's module inside a running pipeline.

    Attributes:
        site: the site.
        step: the denoising step, counted from 0; None outside a pipeline's schedule.
        steps: the number of denoising steps; None outside a pipeline's schedule.
        guided: whether the batch holds unconditional rows before the conditional ones; None where that is not known,
            because the denoiser was not called by the graph's own pipeline.
        project: the module's own computation on another input, without hooks.
        read: what the module reads of other prompts in a batch of so many rows, as `HookGraph.read` gives it.
    """

    site: Site
    step: int | None
    steps: int | None
    guided: bool | None
    project: Callable[[Tensor], Tensor] = field(repr=False)
    read: Callable[[Conditions, int], Tensor] = field(repr=False)

    def rows(self, rows: Rows, batch: int) -> slice:
        """The batch rows meant: all, or only those that carry the prompt.

        Raises:
            InvalidInput: it is not known which rows carry the prompt.
        """
        if rows == "conditional" and self.guided is None and batch > 1:
            raise InvalidInput(
                f"the denoiser was called with {batch} rows, and not by this graph's pipeline, so it is not known which of them carry "
                'the prompt; run `graph.pipe`, make a graph of the pipeline that you run, or use rows="all"'
            )
        return slice(batch // 2, batch) if rows == "conditional" and self.guided else slice(0, batch)

    def within(self, steps: tuple[float, float]) -> bool:
        """Whether this call's step lies in a part of the schedule, given as fractions from 0 (first) to 1 (end)."""
        if steps == (0.0, 1.0):
            return True
        if self.step is None or self.steps is None:
            raise InvalidInput(f"steps={steps} needs a pipeline's schedule, but the denoiser was called on its own; use (0.0, 1.0) there")
        place = self.step / self.steps + _ROUNDING
        return steps[0] <= place < steps[1]


class Moment(NamedTuple):
    """Where in a run a call of the denoiser lies: see `Call`."""

    step: int | None
    steps: int | None
    guided: bool | None


class Clock:
    """Knows the current denoising step from the pipeline's schedule, whatever the number of denoiser calls a step takes.

    Attributes:
        ticks: the denoiser's calls so far.
        guided: whether the current batch holds unconditional rows; None where that is not known.
        hooked: by path, the modules whose calls are compared with these.
    """

    def __init__(self, pipe: Any, ears: Ears, dtype: Callable[[], torch.dtype]) -> None:
        self.ticks = 0
        self.hooked: dict[str, nn.Module] = {}
        self.guided: bool | None = None
        self._pipe = pipe
        self._ears = ears
        self._dtype = dtype
        self._device: torch.device | None = None
        self._step: int | None = None
        self._steps: int | None = None
        self._schedule: Tensor | None = None
        self._order: dict[float, int] = {}

    def tick(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the denoiser."""
        self.ticks += 1
        self.guided = self._ears.guided(self._pipe)
        self._device = (kwargs["sample"] if "sample" in kwargs else args[0]).device
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        now = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        number = None if self.guided is None else self._numbers().get(now)
        self._step = self._steps = None
        if number is not None:  # schedulers of second order may put timesteps of their own between the steps'
            self._steps = min(self._pipe.scheduler.num_inference_steps, len(self._numbers()))
            self._step = number * self._steps // len(self._numbers())

    def _numbers(self) -> dict[float, int]:
        """The number of each distinct timestep of the current schedule; empty before the pipeline has set one."""
        scheduler = self._pipe.scheduler
        if getattr(scheduler, "num_inference_steps", None) is None:
            return {}
        if scheduler.timesteps is not self._schedule:
            self._schedule = scheduler.timesteps
            self._order = {timestep: number for number, timestep in enumerate(dict.fromkeys(self._schedule.tolist()))}
        return self._order

    def place(self) -> tuple[torch.device | None, torch.dtype]:
        """The device and the number format in which the denoiser computes."""
        return self._device, self._dtype()

    @property
    def now(self) -> Moment:
        """Where the current call of the denoiser lies."""
        return Moment(self._step, self._steps, self.guided)

    def call(self, site: Site, project: Callable[[Tensor], Tensor], read: Callable[[Conditions, int], Tensor]) -> Call:
        """What a hook is told about the current call."""
        return Call(site, self._step, self._steps, self.guided, project, read)
