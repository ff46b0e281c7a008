"""Shards: one part of a verb's images, made into a ledger of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.generation.executors.executor import Executor, Workers
from neuroscope.generation.executors.local import Local
from neuroscope.generation.executors.tasks import Part, Task, Work
from neuroscope.generation.ledgers import RunConditions
from neuroscope.pipeline.graph import HookGraph

_TEXT = re.compile(r"([0-9]{1,9})/([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True)
class ShardReport:
    """What a shard has made.

    Attributes:
        shard: which.
        tasks: how many tasks were made now; those that its ledger held are not made again.
        images: how many images these are.
        output: the ledger.
    """

    shard: Shard
    tasks: int
    images: int
    output: str

    def __str__(self) -> str:
        return f"shard {self.shard}: made {counted(self.images, 'image')} in {counted(self.tasks, 'task')}, in {self.output}"


@dataclass(frozen=True)
class Shard:
    """One of several parts of a verb's images, which need not know of each other: each is made into a ledger, and `merge` joins these.

    Every part cuts all tasks in the same way and makes each count-th of them, so that the merged table is that of one run with a ledger,
    to the bit.

    Attributes:
        number: which part, from 1 on.
        count: how many parts there are.

    Raises:
        InvalidInput: no such part.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        checks.whole("count", self.count)
        checks.whole("number", self.number, most=self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard of a text such as "3/16", the third of sixteen; raises InvalidInput for another text."""
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise InvalidInput(f"{checks.shown(text)} is no shard; write its number and how many there are, such as 3/16")
        return cls(int(found[1]), int(found[2]))

    def make(self, verb: Callable[..., Any], /, *args: Any, **options: Any) -> ShardReport:
        """Makes this part of a verb's images.

        Args:
            verb: `localize`, `rank`, `atlas`, `evaluate` or `dose_response`.
            args: its arguments.
            options: its options, the same for each shard but for `output`, the shard's ledger. `batch_size` is needed, as tasks are cut
                by it and what fits the memory may differ between machines.

        Raises:
            InvalidInput: another verb, no `output` or `batch_size`, a method whose next images depend on earlier ones' scores, and what the
                verb refuses.
            InvalidFile: `output` cannot be written or read.
        """
        called = getattr(verb, "__name__", repr(verb))
        if called not in _VERBS:
            raise InvalidInput(f"{called} cannot be made in shards; give one of {', '.join(_VERBS)}")
        for name, why in (
            ("output", "a shard's images are known by its ledger alone"),
            ("batch_size", "all shards must cut the same tasks"),
        ):
            if options.get(name) is None:
                raise InvalidInput(f"{name} is missing: {why}; give {name}={_EXAMPLES[name]} (--{name.replace('_', '-')})")
        executor = options.pop("executor", Local())
        checks.instance("executor", executor, Executor, "ns.Local()")
        try:
            verb(*args, **options, executor=_ShardExecutor(self, executor))
        except _Finished as finished:
            where = options["output"]
            return ShardReport(self, finished.tasks, finished.images, str(getattr(where, "ledger", where)))
        raise InvalidInput(f"{called} has no images that shards could share; call it without a shard")


_VERBS = ("localize", "rank", "atlas", "evaluate", "dose_response")
_EXAMPLES = {"output": '"runs/1"', "batch_size": "16"}


class _Finished(Exception):
    """All images of a shard are made."""

    def __init__(self, tasks: int, images: int) -> None:
        super().__init__(tasks, images)
        self.tasks = tasks
        self.images = images


@dataclass(frozen=True)
class _ShardExecutor(Executor):
    """Makes a part of each list of tasks by another executor, and ends with `_Finished`."""

    shard: Shard
    executor: Executor

    @property
    def maker(self) -> Executor:
        """See `Executor.maker`."""
        return self.executor

    @contextmanager
    def open(self, graph: HookGraph) -> Iterator[Workers]:
        """See `Executor.open`."""
        with self.executor.open(graph) as workers:
            shard = _ShardWorkers(self.shard, workers)
            yield shard
            shard.finish()

    def conditions(self, graph: HookGraph) -> RunConditions:
        """See `Executor.conditions`."""
        return self.executor.conditions(graph)


class _ShardWorkers(Workers):
    """Workers that take each count-th task."""

    is_partial: ClassVar[bool] = True

    def __init__(self, shard: Shard, workers: Workers) -> None:
        self._shard = shard
        self._workers = workers
        self._tasks = 0
        self._images = 0
        #: How many tasks the call's runs before this one had, and how many this one has as far as is known: all are counted through.
        self._before = 0
        self._seen = 0

    @property
    def maker(self) -> Executor:
        """See `Executor.maker`."""
        return self._workers.maker

    @property
    def stops_at_failure(self) -> bool:
        """See `Workers.stops_at_failure`."""
        return self._workers.stops_at_failure

    def conditions(self, graph: HookGraph) -> RunConditions:
        """See `Executor.conditions`."""
        return self._workers.conditions(graph)

    def takes(self, number: int) -> bool:
        """See `Workers.takes`."""
        self._seen = max(self._seen, number + 1)
        return (self._before + number) % self._shard.count == self._shard.number - 1

    @contextmanager
    def one_of_several(self) -> Iterator[None]:
        """See `Workers.one_of_several`: the next run's tasks go on where this one's end, so that all shards have as many."""
        with suppress(_Finished):
            yield
        self._before += self._seen
        self._seen = 0

    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        """See `Workers.run`."""
        self._tasks += len(tasks)
        for number, part in self._workers.run(work, tasks, done):
            self._images += len(part.numbers)
            yield number, part

    def finish(self) -> None:
        """See `Workers.finish`."""
        raise _Finished(self._tasks, self._images)
