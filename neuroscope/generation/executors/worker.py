"""A worker on a Ray cluster, as the process sees it that sends tasks to it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from neuroscope.core.errors import counted

#: The first and the longest pause before what failed is tried again, in seconds. Each pause is twice the one before.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0


def pause(failures: int) -> float:
    """How many seconds to wait after so many failures in a row."""
    return float(min(_SHORTEST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE))


class Sent(NamedTuple):
    """What a worker was sent.

    Attributes:
        reference: Ray's, to what comes back.
        number: the task's; None for the worker's own start.
    """

    reference: Any
    number: int | None


@dataclass(eq=False)
class Worker:
    """One worker. Its actor makes what it was sent in order.

    Attributes:
        number: its own.
        begin: starts an actor with a replica of the model.
        actor: Ray's handle.
        sent: what has not come back.
        where: its process and machine, as far as it is known to be there.
        lost: how often in a row it went away.
        broken: how often in a row it could not start.
        ready_at: when it may be tried again.
        error: what happened when it last went away or did not start.
        images: how many it has made.
        busy: for how many seconds it made them.
        since: when it was first there.
    """

    number: int
    begin: Callable[[], Any]
    actor: Any = None
    sent: deque[Sent] = field(default_factory=deque)
    where: str = ""
    lost: int = 0
    broken: int = 0
    ready_at: float = 0.0
    error: BaseException | None = None
    images: int = 0
    busy: float = 0.0
    since: float | None = None

    def start(self) -> None:
        """Asks the actor to load its replica."""
        self.actor = self.begin() if self.actor is None else self.actor
        self.sent.append(Sent(self.actor.start.remote(), None))

    def is_there(self, where: str) -> None:
        """Notes that it has started."""
        self.where, self.lost, self.broken, self.error = where, 0, 0, None
        self.since = time.monotonic() if self.since is None else self.since

    def send(self, reference: Any, task: Any, number: int) -> None:
        """Sends it a task, and in a list Ray's reference to what the task shares with others."""
        self.sent.append(Sent(self.actor.make.remote([reference], task), number))

    def is_broken(self, error: BaseException) -> None:
        """Notes that it could not start."""
        self.error = error
        self.broken += 1
        self.ready_at = time.monotonic() + pause(self.broken)

    def is_lost(self, error: BaseException) -> list[Sent]:
        """Notes that it went away; gives back what it had not begun."""
        rest, self.where, self.error = list(self.sent), "", error
        self.sent.clear()
        self.lost += 1
        self.ready_at = time.monotonic() + pause(self.lost)
        return rest

    def has_made(self, images: int, seconds: float) -> None:
        """Notes that it has made a task."""
        self.images += images
        self.busy += seconds

    def report(self, until: float) -> str:
        """What it has done, as one line."""
        there = 0.0 if self.since is None else until - self.since
        rate, share = (self.images / self.busy, min(self.busy / there, 1.0)) if self.busy and there else (0.0, 0.0)
        images = counted(self.images, "image")
        return f"worker {self.number}, {self.where or 'lost'}: {images}, {rate:.2f} a second, busy {share:.0%} of {there:.0f} s"


def throughput(workers: Sequence[Worker]) -> list[str]:
    """What each worker has done, a line each."""
    now = time.monotonic()
    return [worker.report(now) for worker in workers]
