"""The ledger in a folder: a growing set of immutable files, on any file system that fsspec knows.

One file is written for each task that was finished, so that a kill loses at most the task in the making. A task takes seconds on a
model of ordinary size, and its file a few milliseconds on a disk or two round trips to an object store. Every 32 files of this process
are packed into one of the next level, and at the end all into one: 10,000 tasks leave about a hundred files while they run.

Any number of processes may write into one folder: no file is ever changed, and a process packs its own files only.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from neuroscope.core.errors import InvalidFile, InvalidInput, counted
from neuroscope.core.results.quality import Cost
from neuroscope.generation.ledgers.ledger import Ledger
from neuroscope.generation.ledgers.location import Location
from neuroscope.generation.ledgers.rows import Lines, Scores, cost_line, failure_line, plan_line, score_line, without_older_costs
from neuroscope.generation.ledgers.run_conditions import RunConditions
from neuroscope.generation.ledgers.segments import SUFFIX, Segment, decode, encode

#: So many files of one level are packed into one of the next.
PACK = 32
#: How often a folder is listed again where another process packed files between its listing and their reading.
_TRIES = 20


class Folder(Ledger):
    """Finished rows in a folder's files, with what runs need, where they fail and what they cost.

    Args:
        location: the folder.
        conditions: under which rows are made now.
        mixed: go on with a run whose rows were made under other conditions. Each row's file says under which it was made.

    Raises:
        InvalidFile: the folder cannot be read, or holds other files and no ledger.
    """

    def __init__(self, location: Location, conditions: RunConditions, *, mixed: bool = False) -> None:
        super().__init__()
        self._location = location
        self._conditions = conditions
        self._mixed = mixed
        self._lines = Lines()
        self._made_under: list[tuple[RunConditions, set[str]]] = []
        self._is_merged = False
        self._part = uuid.uuid4().hex
        self._files: list[list[str]] = []
        self._count = 0
        self._costs: dict[str, Cost] = {}
        self._unwritten: set[str] = set()

    def __enter__(self) -> Self:
        said = []
        for segment in read_segments(self._location):
            self._lines.absorb(segment.lines)
            self._is_merged |= segment.is_merged
            said += [segment.complaint] * bool(segment.complaint)
            if segment.conditions is not None:
                self._made_under.append((segment.conditions, set(segment.lines.scores)))
        if self._lines.disputed:
            rows = counted(len(self._lines.disputed), "row", ("stands", "stand"))
            said.append(f"{rows} twice in {self._location} with different scores, and none of them is used")
        self.rows, self.halved = dict(self._lines.scores), set(self._lines.halved)
        if said:
            warnings.warn(f"{'; '.join(said)}; what is needed of them is made again, and all files stay", UserWarning, stacklevel=4)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._unwritten:
                self._write(b"")
            if sum(map(len, self._files)) > 1:
                self._pack(len(self._files), [name for level in reversed(self._files) for name in level])
        except InvalidFile as found:
            warnings.warn(f"{found}; all rows are there", UserWarning, stacklevel=2)

    @property
    def is_kept(self) -> bool:
        """True: rows are written to the folder."""
        return True

    @property
    def keeps_plans(self) -> bool:
        """True: all is kept."""
        return True

    @property
    def is_merged(self) -> bool:
        """See `Ledger.is_merged`."""
        return self._is_merged

    def plan(self, run: str, title: str, images: Mapping[str, str], todo: Collection[str]) -> None:
        """See `Ledger.plan`. It is written at once, so that a place which cannot be written is found before an image is made."""
        planned = self._lines.plans[run].images if run in self._lines.plans else {}
        if not todo and (planned or images.keys() <= self.rows.keys()):
            return  # but a shard without a task says what the run needs
        self._check_conditions({*planned, *images})
        new = {key: shown for key, shown in images.items() if key not in planned}
        if new or not self._count:
            line = plan_line(run, title, new)
            self._write(line)
            self._lines.absorb(Lines.of(line))

    def fail(self, keys: Sequence[str], error: BaseException) -> None:
        """See `Ledger.fail`; a place that cannot be written keeps the error as it is."""
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        with suppress(InvalidFile):
            self._write(failure_line(keys, said))

    def spend(self, run: str, cost: Cost) -> None:
        """See `Ledger.spend`; it is written with the next rows, or at the end."""
        self._costs[run] = cost
        self._unwritten.add(run)

    def spent(self, run: str) -> Cost:
        """See `Ledger.spent`."""
        return sum(self._lines.parts.get(run, {}).values(), Cost())

    def _keep(self, rows: Mapping[str, Scores]) -> None:
        if rows:
            lines = (score_line(key, scores, self._lines.attempt(key), key in self.halved) for key, scores in rows.items())
            self._write(b"".join(lines))

    def _check_conditions(self, keys: Collection[str]) -> None:
        """Refuses to go on with a run whose rows were made under other conditions."""
        others = [former for former, rows in self._made_under if former != self._conditions and not rows.isdisjoint(keys)]
        if others and not self._mixed:
            raise InvalidInput(
                f"rows of this run in {self._location} were made under other conditions: {self._conditions.differences(others[0])}; new "
                "ones could differ from them in their last digits. Run under the former, choose another place, or go on with "
                f"output=ns.ResumeAnyway({str(self._location)!r}) (--resume-anyway), which keeps under which conditions each row was made"
            )

    def _write(self, lines: bytes) -> None:
        """Writes a file with these lines and with costs that are new, and packs files where there are many."""
        costs = b"".join(cost_line(run, self._part, self._costs[run]) for run in sorted(self._unwritten))
        name = f"{self._part}-{self._count:08}-0{SUFFIX}"
        self._location.write(name, encode(lines + costs, self._conditions))
        self._count += 1
        self._unwritten.clear()
        self._add_file(0, name)
        level = 0
        while level < len(self._files) and len(self._files[level]) >= PACK:
            self._pack(level + 1, self._files[level])
            level += 1

    def _pack(self, level: int, names: Sequence[str]) -> None:
        """Writes the lines of files to one, and removes the files."""
        names = list(names)
        raw = b"".join(decode(name, self._location.read(name)).raw for name in names)
        packed = f"{self._part}-{self._count:08}-{level}{SUFFIX}"
        self._location.write(packed, encode(without_older_costs(raw), self._conditions))
        self._count += 1
        for each in self._files:
            each[:] = [name for name in each if name not in names]
        self._add_file(level, packed)
        self._location.remove(names)

    def _add_file(self, level: int, name: str) -> None:
        self._files += [[] for _ in range(level + 1 - len(self._files))]
        self._files[level].append(name)


def read_segments(location: Location) -> list[Segment]:
    """All files of a ledger.

    Raises:
        InvalidFile: the folder cannot be read, or holds other files and no ledger; a newer version of neuroscope wrote it.
    """
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):  # another process packed files since they were listed
            return list(_read_all(location))
    raise InvalidFile(f"{location} cannot be read: its files change all the time; try again")


def _read_all(location: Location) -> Iterator[Segment]:
    names = location.names()
    found = [name for name in names if name.endswith(SUFFIX)]
    if names and not found:
        raise InvalidFile(f"{location} is a folder with other files, such as {names[0]}, and no ledger; choose a new or an empty folder")
    for name in found:
        yield decode(f"{location}/{name}", location.read(name))
