"""What an executor is: it opens workers for a model, which make lists of tasks."""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from tqdm.auto import tqdm

from neuroscope.core.errors import InvalidInput, TasksFailed, counted
from neuroscope.generation.executors.tasks import Part, Task, Work
from neuroscope.generation.ledgers import RunConditions
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

    @property
    def maker(self) -> Executor:
        """Who makes the images: itself, unless it hands tasks on to another executor."""
        return self

    def conditions(self, graph: HookGraph) -> RunConditions:
        """Under which conditions its workers make images; by default those of this process."""
        return RunConditions.of(graph)


class Workers(Executor):
    """Workers that are there. They are an executor of their own, so that several verbs can share them.

    Attributes:
        is_partial: whether they make a part of each list of tasks alone, so that no table comes of it.
    """

    is_partial: ClassVar[bool] = False

    @property
    def stops_at_failure(self) -> bool:
        """Whether a task that fails ends the run, so that those behind it were not tried."""
        return False

    def open(self, graph: HookGraph) -> AbstractContextManager[Workers]:
        """The workers themselves."""
        return nullcontext(self)

    def takes(self, number: int) -> bool:
        """Whether they make the task of this number, counted before any is made or left out; by default all."""
        return number >= 0

    def one_of_several(self) -> AbstractContextManager[None]:
        """A block for one of the runs of a call that has several, such as an atlas with a run for each concept."""
        return nullcontext()

    def finish(self) -> None:
        """Called when all tasks of a run are made whose tasks are known from the beginning; raises where no table comes of it."""

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


def make(
    workers: Workers,
    work: Work,
    tasks: Sequence[Task],
    done: int = 0,
    failed: Callable[[Sequence[tuple[int, int]], Exception], None] = lambda _rows, _error: None,
) -> Generator[tuple[int, Part], None, None]:
    """What workers make of tasks; see `Workers.run`. Close it, so that workers drop what is left of a call that ends early.

    Args:
        workers: make them.
        work: what the tasks share.
        tasks: what to make.
        done: how many images were made before, for the progress bar.
        failed: called with the numbers of tasks and rows that were not made because of an error, before it is raised.

    Raises:
        InvalidInput: they are through and left rows out.
    """
    left = [set(range(len(task.rows))) for task in tasks]
    made = iter(workers.run(work, tasks, done))
    try:
        while True:
            try:
                number, part = next(made)
            except StopIteration:
                break
            except Exception as error:
                _tell(failed, left, error, workers.stops_at_failure)
                raise
            left[number] -= set(part.numbers)
            yield number, part
    finally:
        if isinstance(made, Generator):
            made.close()
    if lost := sum(map(bool, left)):
        raise InvalidInput(
            f"{type(workers).__name__} did not make all rows of {lost} of {counted(len(tasks), 'task')}; "
            "an executor gives back every row of each"
        )


def _tell(
    failed: Callable[[Sequence[tuple[int, int]], Exception], None], left: Sequence[set[int]], error: Exception, only_first: bool
) -> None:
    """Says which rows were not made, and of each task its own reason."""
    own = error.errors if isinstance(error, TasksFailed) else {}
    rows_by_reason: dict[Exception, list[tuple[int, int]]] = {}
    for number in [number for number, rows in enumerate(left) if rows][: 1 if only_first else None]:
        rows_by_reason.setdefault(own.get(number, error), []).extend((number, row) for row in sorted(left[number]))
    for reason, unmade in rows_by_reason.items():
        failed(unmade, reason)


def progress(work: Work, tasks: Sequence[Task], done: int) -> tqdm:
    """The progress bar of a list of tasks: images done, their rate, and the time that is left."""
    total = done + sum(len(task.rows) for task in tasks)
    return tqdm(total=total, initial=done, desc=work.label, unit="image", disable=work.quiet)
