"""The default executor: this process, one task after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neuroscope.generation.executors.executor import Workers, progress
from neuroscope.generation.executors.tasks import Part, Task, Work, perform


@dataclass(frozen=True)
class Local(Workers):
    """Makes all images in this process, with the pipeline that it was given, in order."""

    @property
    def stops_at_failure(self) -> bool:
        """True: an error ends the call."""
        return True

    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        """See `Workers.run`."""
        with progress(work, tasks, done) as bar:
            for number, task in enumerate(tasks):
                for part in perform(work, task):
                    yield number, part
                    bar.update(len(part.numbers))
