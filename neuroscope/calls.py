"""One call of a hooked module: which step of the schedule it belongs to and which rows carry the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuroscope._errors import InvalidInput
from neuroscope.conditions import Conditions
from neuroscope.guidance import GuidanceListener
from neuroscope.layout import PLAIN, BatchLayout, Rows
from neuroscope.sites import Site

_ROUNDING = 1e-9  # so that step 15 of 50 is not before 3 * 0.1


@dataclass(frozen=True)
class Call:
    """One call of a site's module inside a running pipeline.

    Attributes:
        site: the site.
        step: the denoising step, counted from 0; None outside a pipeline's schedule.
        steps: the number of denoising steps; None outside a pipeline's schedule.
        layout: which rows of the batch carry the prompt; None where that is not known, because the denoiser was not called by the
            graph's own pipeline.
        project: the module's own computation on another input, without hooks.
        read: what the module reads of other prompts in a batch of so many rows, as `HookGraph.read` gives it.
    """

    site: Site
    step: int | None
    steps: int | None
    layout: BatchLayout | None
    project: Callable[[Tensor], Tensor] = field(repr=False)
    read: Callable[[Conditions, int], Tensor] = field(repr=False)

    @property
    def guided(self) -> bool | None:
        """Whether the batch holds other parts than the one that carries the prompt; None where that is not known."""
        return None if self.layout is None else len(self.layout.parts) > 1

    @property
    def parts(self) -> int:
        """How many rows the batch has for each image, as far as is known."""
        return len((self.layout or PLAIN).parts)

    def rows(self, rows: Rows, batch: int) -> slice:
        """The batch rows meant: all, or only those that carry the prompt (none, where a call has no such rows).

        Raises:
            InvalidInput: it is not known which rows carry the prompt.
        """
        if rows == "conditional" and self.layout is None and batch > 1:
            raise InvalidInput(
                f"the denoiser was called with {batch} rows, and not by this graph's pipeline, so it is not known which of them carry "
                'the prompt; run `graph.pipe`, make a graph of the pipeline that you run, or use rows="all"'
            )
        return (self.layout or PLAIN).rows(rows, batch)

    def within(self, steps: tuple[float, float]) -> bool:
        """Whether this call's step lies in a part of the schedule, given as fractions from 0 (first) to 1 (end)."""
        if steps == (0.0, 1.0):
            return True
        if self.step is None or self.steps is None:
            cause = "was called on its own" if self.layout is None else "was called at a timestep that is not the schedule's next"
            raise InvalidInput(f"steps={steps} needs a pipeline's schedule, but the denoiser {cause}; use (0.0, 1.0) there")
        place = self.step / self.steps + _ROUNDING
        return steps[0] <= place < steps[1]


class Moment(NamedTuple):
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

    Attributes:
        ticks: the denoiser's calls so far.
        hooked: by path, the modules whose calls are compared with these.
        now: where the current call of the denoiser lies.
    """

    def __init__(self, listener: GuidanceListener, bind: Bind, dtype: Callable[[], torch.dtype]) -> None:
        self.ticks = 0
        self.hooked: dict[str, nn.Module] = {}
        self.now = Moment(None, None, None)
        self._listener = listener
        self._bind = bind
        self._dtype = dtype
        self._device: torch.device | None = None

    def tick(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the denoiser."""
        self.ticks += 1
        given = self._bind(args, kwargs)
        self._device = given["latents"].device
        run = self._listener.run
        if run is None:
            self.now = Moment(None, None, None)
            return
        timestep = given["timestep"]
        step, steps = run.step(float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep))
        self.now = Moment(step, steps, run.layout(given["context"]))

    def place(self) -> tuple[torch.device | None, torch.dtype]:
        """The device and the number format in which the denoiser computes."""
        return self._device, self._dtype()

    def call(self, site: Site, project: Callable[[Tensor], Tensor], read: Callable[[Conditions, int], Tensor]) -> Call:
        """What a hook is told about the current call."""
        return Call(site, *self.now, project, read)
