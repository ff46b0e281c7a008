"""What an executor is: it opens workers for a model, which make lists of tasks."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from tqdm.auto import tqdm

from neuroscope.core.errors import InvalidInput
from neuroscope.generation.executors.tasks import Part, Task, Work
from neuroscope.pipeline.graph import HookGraph


class Executor(abc.ABC):
    """Where a verb's images are made: `Local()`, or a class of your own."""

    @abc.abstractmethod
    def open(self, graph: HookGraph) -> AbstractContextManager[Workers]:
        """A block with workers that make images of this model.

        Args:
            graph: the model.

        Raises:
            InvalidInput: what was asked for cannot be provided; before any image is made.
        """


class Workers(Executor):
    """Workers that are there. They are an executor of their own, so that several verbs can share them."""

    def open(self, graph: HookGraph) -> AbstractContextManager[Workers]:
        """The workers themselves."""
        return nullcontext(self)

    @abc.abstractmethod
    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        """Makes all tasks, in any order.

        Args:
            work: what they share.
            tasks: what to make.
            done: how many images were made before, for the progress bar.

        Yields:
            The number of a task, and what was made of it.
        """


def make(workers: Workers, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
    """What workers make of tasks; see `Workers.run`.

    Raises:
        InvalidInput: they are through and left rows out.
    """
    left = [set(range(len(task.rows))) for task in tasks]
    for number, part in workers.run(work, tasks, done):
        left[number] -= set(part.numbers)
        yield number, part
    if lost := sum(map(bool, left)):
        raise InvalidInput(
            f"{type(workers).__name__} did not make all rows of {lost} of {len(tasks)} tasks; an executor gives back every row of each"
        )


def progress(work: Work, tasks: Sequence[Task], done: int) -> tqdm:
    """The progress bar of a list of tasks: images done, their rate, and the time that is left."""
    total = done + sum(len(task.rows) for task in tasks)
    return tqdm(total=total, initial=done, desc=work.label, unit="image", disable=work.quiet)
