"""Tasks: fixed groups of images, cut before anything is handed out.

A task is data: rows with their seeds and interventions, and how they are scored. What tasks share, such as the encoded prompts, is
`Work`. No task needs another's result: where a metric compares a run with its source and its target, the task gives back its images
or latents as they are, and who handed it out compares them. So tasks may be made anywhere, in any order and more than once.

Rows that share a batch of the pipeline are rounded together, so that a task's rows are those of one batch, whoever makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL.Image import Image
from torch import Tensor

from neuroscope.generation.batches import Row, Sweep, SweepInputs
from neuroscope.metrics.metric import Metric, bind, scores_of, unbind
from neuroscope.pipeline.graph import HookGraph

#: The block in which a batch runs, given the model and all rows of the batch. It is sent to other processes, so it holds no model.
TaskContext = Callable[[HookGraph, Sequence[Row]], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class Task:
    """A group of images that are made together.

    Attributes:
        rows: what to make.
        prompts: for each row the prompt that metrics score its image by.
        shared_rows: rows that are made in front of them, because they take something from these.
        context: the block in which they run; by default each row's own changes are applied.
        shown: the numbers of the rows whose images are given back too.
    """

    rows: tuple[Row, ...]
    prompts: tuple[str, ...]
    shared_rows: tuple[Row, ...] = ()
    context: TaskContext | None = None
    shown: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Work:
    """What the tasks of one list share.

    Attributes:
        sweep: makes the rows.
        metrics: score images; where there is none, rows come back as they are.
        label: what the progress bar says.
        quiet: show no progress bar.
    """

    sweep: Sweep
    metrics: tuple[Metric, ...] = ()
    label: str = ""
    quiet: bool = False

    @property
    def shipped(self) -> ShippedWork:
        """The same for another process."""
        return ShippedWork(self.sweep.inputs, tuple(unbind(metric) for metric in self.metrics))


@dataclass(frozen=True, eq=False)
class ShippedWork:
    """`Work` as data, without the model."""

    inputs: SweepInputs
    metrics: tuple[Any, ...]

    def on(self, graph: HookGraph) -> Work:
        """The work on a replica of the model, whose metrics load their own models there."""
        return Work(Sweep.of(graph, self.inputs), tuple(bind(metric, graph) for metric in self.metrics))


@dataclass(frozen=True, eq=False)
class Part:
    """What was made of some consecutive rows of a task: of all of them, unless they did not fit the memory.

    Attributes:
        numbers: of the rows.
        scores: by the metrics' names, for each row.
        made: where there are no metrics, the rows' images, or latents on the CPU.
        images: by number, those that are shown.
        is_halved: whether its rows were made in fewer at a time than the task has, as these did not fit the memory: rows that share a
            batch are rounded together.
    """

    numbers: range
    scores: dict[str, list[float]] = field(default_factory=dict)
    made: list[Any] = field(default_factory=list)
    images: dict[int, Image] = field(default_factory=dict)
    is_halved: bool = False


def perform(work: Work, task: Task) -> Iterator[Part]:
    """Makes and scores a task's rows."""
    sweep, first = work.sweep, 0
    context = partial(task.context, sweep.graph) if task.context is not None else None
    for rows, made in sweep.run(task.rows, context, task.shared_rows):
        numbers = range(first, first := first + len(rows))
        prompts = [task.prompts[number] for number in numbers]
        images = sweep.images(made) if work.metrics else []
        scores = {metric.name: scores_of(metric, images, prompts) for metric in work.metrics}
        shown = [number for number in task.shown if number in numbers]
        drawn = sweep.images([made[number - numbers.start] for number in shown]) if shown else []
        kept = [] if work.metrics else [each.to("cpu", copy=True) if isinstance(each, Tensor) else each for each in made]
        yield Part(numbers, scores, kept, dict(zip(shown, drawn, strict=True)), is_halved=len(rows) < len(task.rows))
