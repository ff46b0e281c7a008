"""Forecasts: how long a plan takes on several workers, and what memory each of them needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.results.quality import Cost, Plan
from neuroscope.generation.arguments import check_generation
from neuroscope.generation.batches import Row, Sweep, bytes_an_image, fitted_batch_size
from neuroscope.generation.metering import metered
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.placement import footprint

#: What is made where a rate is measured.
_PROMPT = "a red circle"
#: As `rate`: make a batch here and time it.
MEASURE = "measure"


@dataclass(frozen=True)
class Forecast:
    """What a plan takes on several workers, each with a replica of the model.

    Attributes:
        plan: images and NFE; None where a method cannot know them before it runs.
        batch_size: images of a task.
        workers: how many.
        rate: the NFE a second of one worker; None where it is not known.
        weights_bytes: of a replica's weights.
        working_bytes: what a worker needs beside them while it makes a batch.
        is_measured: whether rate and working memory were measured here; otherwise the memory is an upper bound, all outputs of the
            denoiser's modules together.
    """

    plan: Plan | None
    batch_size: int
    workers: int
    rate: float | None
    weights_bytes: int
    working_bytes: int
    is_measured: bool = False

    @property
    def tasks(self) -> int:
        """How many groups of images are handed out."""
        return -(-self.plan.images // self.batch_size) if self.plan is not None else 0

    @property
    def seconds(self) -> float | None:
        """How long the worker with most images takes, without its start; None where the plan or the rate is not known.

        What makes no image runs in one process, whatever the number of workers.
        """
        if self.plan is None or self.rate is None:
            return None
        share = self._most_of(self.plan.images) / self.plan.images if self.plan.images else 1.0
        return share * self.plan.nfe / self.rate

    def _most_of(self, images: int) -> int:
        """The images of the worker that has most, where each takes its next task when it is free."""
        rounds = -(-self.tasks // self.workers)
        in_last = self.tasks - (rounds - 1) * self.workers
        rest = images - (self.tasks - 1) * self.batch_size
        return (rounds - 1) * self.batch_size + (rest if in_last == 1 else self.batch_size)

    def __str__(self) -> str:
        return f"{self._said_of_time}\n{self._said_of_memory}"

    @property
    def _said_of_time(self) -> str:
        if self.plan is None:
            return "the cost of this method is not known before it runs; the time is known after the first batch"
        tasks = f" in {counted(self.tasks, 'task')} of at most {counted(self.batch_size, 'image')}" if self.plan.images else ""
        if self.seconds is None:
            return f"{self.plan}{tasks}{'; the time is known after the first batch' if self.plan.nfe else ''}"
        workers = f" on {counted(self.workers, 'worker')}" if self.workers > 1 and self.plan.images else ""
        measured = ", as measured here" if self.is_measured else ""
        return f"{self.plan}{tasks}, about {said_time(self.seconds)}{workers} at {self.rate:.3g} NFE a second each{measured}"

    @property
    def _said_of_memory(self) -> str:
        weights, working = (f"{size / 1e9:,.2f} GB" for size in (self.weights_bytes, self.working_bytes))
        images = counted(self.batch_size, "image")
        if self.is_measured:
            return f"each worker: {weights} of weights and {working} beside them (measured: the peak while {images} were made here)"
        return f"each worker: {weights} of weights and at most {working} beside them for {images} at a time (estimated)"

    def to_facts(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        names = ("tasks", "batch_size", "workers", "rate", "weights_bytes", "working_bytes", "is_measured", "seconds")
        plan = {} if self.plan is None else {"images": self.plan.images, "nfe": self.plan.nfe, "is_bound": self.plan.is_bound}
        return plan | {name: getattr(self, name) for name in names}


def forecast(
    graph: HookGraph,
    plan: Plan | None,
    *,
    batch_size: int | None = None,
    workers: int = 1,
    rate: float | Literal["measure"] | None = None,
    **generation: Any,
) -> Forecast:
    """How long a plan takes on several workers, and what memory each of them needs.

    Args:
        graph: the model.
        plan: such as `plan_localization` gives.
        batch_size: images of a task; by default as many as fit half of the free memory here.
        workers: how many, each with a replica of the model.
        rate: the NFE a second of one worker, or "measure" to make one image and then a batch here.
        **generation: the pipeline's options for the sweep, such as `num_inference_steps`.

    Raises:
        InvalidInput: a number that is not allowed, or an option that the pipeline does not have.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    checks.whole("workers", workers)
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    check_generation(graph.pipe, generation, forecast)
    size = batch_size or fitted_batch_size(graph, generation)
    weights = footprint(graph.pipe).bytes
    if rate == MEASURE:
        cost = _measured(graph, size, generation)
        return Forecast(plan, size, workers, cost.nfe / cost.seconds, weights, max(0, cost.peak_bytes - weights), is_measured=True)
    if isinstance(rate, str):
        raise InvalidInput(f"rate={checks.shown(rate)} is no rate; give NFE a second, or {MEASURE!r}")
    known = None if rate is None else checks.finite("rate", rate, above=0)
    working = 2 * size * bytes_an_image(graph, generation.get("height"), generation.get("width"))
    return Forecast(plan, size, workers, known, weights, working)


def _measured(graph: HookGraph, size: int, generation: dict[str, Any]) -> Cost:
    """The cost of one batch, once the model is warm."""
    sweep = Sweep(graph, [_PROMPT], generation, batch_size=size)
    list(sweep.run([Row(_PROMPT, 0)]))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with metered(graph.denoiser) as meter:
        list(sweep.run([Row(_PROMPT, seed) for seed in range(size)]))
        return meter.cost


def said_time(seconds: float) -> str:
    """A span of time in its largest whole unit but one, such as "90 s", "45 min" or "30 h"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
