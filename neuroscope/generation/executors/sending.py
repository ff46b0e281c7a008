"""Sending a list of tasks to workers on a Ray cluster, and taking in what they make."""

from __future__ import annotations

import heapq
import pickle
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from neuroscope.core.errors import InvalidInput, NeuroscopeError, TasksFailed, counted, first_line
from neuroscope.generation.executors.executor import progress
from neuroscope.generation.executors.replica import Made, warning_of
from neuroscope.generation.executors.tasks import Part, Task, Work
from neuroscope.generation.executors.worker import Worker, pause

#: What pickling raises for objects that it does not take.
UNSENDABLE = (TypeError, AttributeError, ValueError, RuntimeError, pickle.PickleError)
#: How many tasks a worker has at a time: the one that it makes, and the next one, so that it never waits.
_PREFETCHED = 2
#: How often a task or the start of a worker is tried.
_TRIES = 3
#: How many seconds pass between two looks at the progress bar and at workers that may be tried again.
_INTERVAL = 0.5
#: For how many seconds no worker may be there once one was lost or did not start.
_PATIENCE = 600.0


class Sending:
    """One list of tasks on its way.

    Args:
        ray: the package, connected.
        workers: make the tasks; each has at most two at a time.
        work: what the tasks share.
        tasks: what to make.
        count_rows: told the NFE of each task that was made.
    """

    def __init__(
        self, ray: Any, workers: Sequence[Worker], work: Work, tasks: Sequence[Task], count_rows: Callable[[int | float], None]
    ) -> None:
        self._ray, self._workers, self._work, self._tasks, self._count_rows = ray, workers, work, tasks, count_rows
        with _sendable(ray, "what the tasks share (the metrics and the pipeline's options)"):
            self._shared = ray.put(work.shipped)
        #: When each waiting task may be sent, and its number.
        self._waiting = [(0.0, number) for number in range(len(tasks))]
        self._left = set(range(len(tasks)))
        self._tries: Counter[int] = Counter()
        self._failed: dict[int, Exception] = {}
        self._warned: set[tuple[str, str]] = set()
        self._last_there = time.monotonic()

    def results(self, done: int) -> Iterator[tuple[int, Part]]:
        """The numbers of tasks and what was made of them, as they come.

        Args:
            done: how many images were made before, for the progress bar.

        Raises:
            InvalidInput: a worker's images would differ from those of this process, or something cannot be sent.
            TasksFailed: some tasks failed three times, while all others are made; or no worker is there.
        """
        shown = ""
        with progress(self._work, self._tasks, done) as bar:
            try:
                while self._left:
                    self._send()
                    for worker in self._with_news():
                        for number, part in self._take(worker):
                            yield number, part
                            bar.update(len(part.numbers))
                    shown, before = f"{self._count_there()} of {counted(len(self._workers), 'worker')}", shown
                    bar.set_postfix_str(shown, refresh=shown != before)
            finally:
                self._withdraw()
        if self._failed:
            raise self._failure()

    def _count_there(self) -> int:
        return sum(bool(worker.where) for worker in self._workers)

    def _send(self) -> None:
        """Starts workers that are not there, and fills up those that are: first one task each, then the next."""
        now = time.monotonic()
        for worker in self._workers:
            if not worker.where and not worker.sent and worker.ready_at <= now and worker.broken < _TRIES:
                worker.start()
        self._check_patience(now)
        for count in range(1, _PREFETCHED + 1):
            for worker in self._workers:
                if worker.where and len(worker.sent) < count and self._waiting and self._waiting[0][0] <= now:
                    _, number = heapq.heappop(self._waiting)
                    with _sendable(self._ray, "a task"):
                        worker.send(self._shared, self._tasks[number], number)

    def _check_patience(self, now: float) -> None:
        """Raises TasksFailed where no worker is there and none will be."""
        if self._count_there():
            self._last_there = now
        errors = [worker.error for worker in self._workers if worker.error is not None]
        given_up = all(worker.broken >= _TRIES for worker in self._workers)
        if given_up or (errors and not self._count_there() and now - self._last_there > _PATIENCE):
            raise TasksFailed(
                f"no worker is there, and {len(self._left)} of {counted(len(self._tasks), 'task')} left: {_said(errors[-1])} "
                "Finished images are kept in `output` (--resume); run again with it once the cluster is well"
            ) from errors[-1]

    def _with_news(self) -> list[Worker]:
        """The workers that have made, or failed at, the first thing that they were sent.

        Ray says meanwhile which machines were lost; that goes to standard error, as standard output may be a command's result.
        """
        heads = {worker.sent[0].reference: worker for worker in self._workers if worker.sent}
        if not heads:
            time.sleep(_INTERVAL / 2)
            return []
        with redirect_stdout(sys.stderr):
            ready, _ = self._ray.wait(list(heads), num_returns=1, timeout=_INTERVAL)
            if ready and len(heads) > 1:
                ready, _ = self._ray.wait(list(heads), num_returns=len(heads), timeout=0)
        return [heads[reference] for reference in ready]

    def _take(self, worker: Worker) -> list[tuple[int, Part]]:
        """Takes in one thing that came back from a worker."""
        reference, number = worker.sent.popleft()
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._has_raised(worker, number, error)
        except self._ray.exceptions.RayError as error:
            self._is_lost(worker, number, error)
        else:
            if number is not None:
                return self._has_made(worker, number, found)
            worker.is_there(found)
        return []

    def _has_made(self, worker: Worker, number: int, made: Made) -> list[tuple[int, Part]]:
        worker.has_made(len(self._tasks[number].rows), made.seconds)
        self._count_rows(made.nfe)
        self._left.discard(number)
        for name, text in made.warned:
            if (name, text) not in self._warned:
                self._warned.add((name, text))
                warnings.warn(text, warning_of(name), stacklevel=2)
        return [(number, part) for part in made.parts]

    def _has_raised(self, worker: Worker, number: int | None, error: Any) -> None:
        """What was sent raised an error. A mistake of the user's is raised here; anything else is tried again."""
        cause = error.cause
        if isinstance(cause, NeuroscopeError):
            raise cause from error
        if number is None:
            worker.is_broken(cause)
        else:
            self._try_again(number, cause)

    def _is_lost(self, worker: Worker, number: int | None, error: Exception) -> None:
        """A worker's process or machine went away. Tasks that it had not begun are not counted as tried."""
        if is_gone := isinstance(error, self._ray.exceptions.ActorDiedError):  # Ray does not start this one again
            worker.actor = None
        if number is None and is_gone:
            worker.is_broken(error)
            return
        for again in [each.number for each in worker.is_lost(error) if each.number is not None]:
            heapq.heappush(self._waiting, (0.0, again))
        if number is not None:
            self._try_again(number, error)

    def _try_again(self, number: int, error: Exception) -> None:
        self._tries[number] += 1
        if self._tries[number] < _TRIES:
            heapq.heappush(self._waiting, (time.monotonic() + pause(self._tries[number]), number))
        else:
            self._left.discard(number)
            self._failed[number] = error

    def _withdraw(self) -> None:
        """Takes back what workers have not begun; what they are making is not waited for."""
        is_connected = self._ray.is_initialized()  # else Ray would start a new cluster to cancel in
        for worker in self._workers:
            for each in list(worker.sent)[1:] if self._left and is_connected else ():
                self._ray.cancel(each.reference)
            if any(each.number is not None for each in worker.sent):
                worker.sent.clear()

    def _failure(self) -> TasksFailed:
        images = sum(len(self._tasks[number].rows) for number in self._failed)
        error = next(iter(self._failed.values()))
        failed = TasksFailed(
            f"{len(self._failed)} of {counted(len(self._tasks), 'task')} ({counted(images, 'image')}) failed {_TRIES} times each, and "
            f"all others are made: {_said(error)}{self._others(error)} Finished images are kept in `output` (--resume); run again with it "
            "to make the rest",
            self._failed,
        )
        failed.__cause__ = error
        return failed

    def _others(self, first: Exception) -> str:
        """How many tasks failed for another reason than this."""
        others = sum(_said(error) != _said(first) for error in self._failed.values())
        return f" {others} of them failed for other reasons, which `neuroscope show` lists by image." if others else ""


def _said(error: BaseException) -> str:
    said = first_line(error) if isinstance(error, Exception) else ""
    return f"{type(error).__name__}: {said}".rstrip(".: ") + "."


def _reason(error: Exception) -> Exception:
    """What an error of Ray's own was raised for."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


@contextmanager
def _sendable(ray: Any, what: str) -> Iterator[None]:
    """Raises InvalidInput where something cannot be sent to other processes."""
    try:
        yield
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        raise InvalidInput(f"Ray's object store has no room for {what}: {first_line(error)} Start Ray with a larger one") from error
    except (*UNSENDABLE, OSError) as error:
        raise InvalidInput(
            f"{what} cannot be sent to workers: {first_line(_reason(error))}; give objects that can be pickled, such as frozen dataclasses"
        ) from error
