"""What a ledger holds: for each run what is done, missing and failed, and what it has cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

from neuroscope.core import checks
from neuroscope.core.errors import InvalidFile, counted
from neuroscope.core.results.quality import HALVED, Cost
from neuroscope.generation.ledgers.folder import read_segments
from neuroscope.generation.ledgers.location import Location, is_url
from neuroscope.generation.ledgers.opening import is_line_file
from neuroscope.generation.ledgers.rows import Lines, RunPlan
from neuroscope.generation.ledgers.run_conditions import RunConditions
from neuroscope.generation.ledgers.segments import SUFFIX, Segment

#: So many missing images are listed in the text of a run.
_LISTED = 5
_BEGINNINGS = (b'{"key"', b'{"run"')


@dataclass(frozen=True)
class RunSummary:
    """How far a run is.

    Attributes:
        title: what was asked for.
        images: how many it needs, as far as it has asked for them.
        missing: by key, what each image shows that is not made.
        failed: by key, why an image could not be made when it was last tried; these are missing too.
        halved: how many were made in groups that did not fit the memory and were halved, so that their last digits can differ.
        cost: of all parts of the run.
    """

    title: str
    images: int
    missing: dict[str, str]
    failed: dict[str, str]
    halved: int
    cost: Cost

    @property
    def done(self) -> int:
        """How many images are made and scored."""
        return self.images - len(self.missing)

    def __str__(self) -> str:
        images = counted(self.images, "image")
        counts = f"{self.done} of {images} done, {len(self.missing)} missing, {len(self.failed)} of them failed"
        counts += f", {self.halved} made {HALVED}" if self.halved else ""
        counts += f"; {self.cost}"
        return "\n".join([f"{self.title}\n  {counts}", *self._listed()])

    def _listed(self) -> Iterator[str]:
        for key, shown in list(self.missing.items())[:_LISTED]:
            yield f"  missing: {shown}{f' ({self.failed[key]})' if key in self.failed else ''}"
        if len(self.missing) > _LISTED:
            yield f"  and {len(self.missing) - _LISTED} more (all with --json)"


@dataclass(frozen=True)
class LedgerSummary:
    """What a ledger holds.

    Attributes:
        rows: how many finished images it has scores of.
        runs: how far each run is; none of a JSON-lines file, which does not keep what runs need.
        conditions: under which rows were made, with the keys of these rows.
        unknown_conditions: of how many rows that is not known, as they come from a JSON-lines file.
        halved: the keys of rows that were made in groups which did not fit the memory and were halved.
        complaints: what is damaged.
    """

    rows: int
    runs: tuple[RunSummary, ...]
    conditions: tuple[tuple[RunConditions, tuple[str, ...]], ...]
    unknown_conditions: int
    halved: tuple[str, ...]
    complaints: tuple[str, ...]

    @classmethod
    def of(cls, ledger: str | PathLike[str]) -> Self:
        """Reads a ledger; nothing is written.

        Args:
            ledger: a folder, a URL, or a JSON-lines file.

        Raises:
            InvalidFile: there is none, or it cannot be read.
        """
        segments = read_ledger(ledger)
        lines = joined(segments)
        under = by_conditions(segments, lines)
        complaints = [segment.complaint for segment in segments if segment.complaint]
        if lines.disputed:
            complaints.append(
                f"{counted(len(lines.disputed), 'row', ('stands', 'stand'))} there twice with different scores, and none of them is used"
            )
        runs = tuple(_summary(run, plan, lines) for run, plan in lines.plans.items())
        known = tuple((conditions, tuple(rows)) for conditions, rows in under if conditions is not None)
        unknown = sum(len(rows) for conditions, rows in under if conditions is None)
        halved = tuple(key for key in lines.scores if key in lines.halved)
        return cls(len(lines.scores), runs, known, unknown, halved, tuple(complaints))

    def __str__(self) -> str:
        """A text of some lines."""
        made = [f"  {counted(len(rows), 'row')} made on {conditions}" for conditions, rows in self.conditions]
        made += [f"  {counted(self.unknown_conditions, 'row')} made under unknown conditions"] * bool(self.unknown_conditions)
        made += [f"  {counted(len(self.halved), 'row')} made {HALVED}"] * bool(self.halved)
        return "\n".join(
            [f"ledger with {counted(self.rows, 'row')}", *made, *map(str, self.runs), *(f"  damaged: {each}" for each in self.complaints)]
        )

    def to_facts(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "kind": "ledger",
            "rows": self.rows,
            "runs": [asdict(run) | {"done": run.done} for run in self.runs],
            "conditions": [conditions.to_header() | {"keys": list(rows)} for conditions, rows in self.conditions],
            "unknown_conditions": self.unknown_conditions,
            "halved": list(self.halved),
            "complaints": list(self.complaints),
        }


def is_ledger(where: str) -> bool:
    """Whether a path or URL is that of a ledger rather than of another file of results."""
    if is_url(where) or Path(where).is_dir() or Path(where).suffix == ".jsonl":
        return True
    try:
        with Path(where).open("rb") as file:
            return file.read(len(_BEGINNINGS[0])) in _BEGINNINGS
    except (OSError, ValueError):
        return False


def read_ledger(ledger: str | PathLike[str]) -> list[Segment]:
    """The files of a ledger of either form.

    Raises:
        InvalidFile: there is none, or it cannot be read.
    """
    checks.path("ledger", ledger)
    where = fspath(ledger)
    if is_line_file(where):
        return [_of_line_file(Path(where))]
    location = Location(where)
    segments = read_segments(location)
    if not segments:
        raise InvalidFile(f"{where} holds no ledger, no file in it ends in {SUFFIX}; give the folder, URL or .jsonl file of a ledger")
    return segments


def _of_line_file(path: Path) -> Segment:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}; give a ledger") from error
    lines = Lines.of(raw)
    if not lines.is_ledger:
        raise InvalidFile(f"{path} is no ledger, none of its lines is a row of one; give a ledger")
    return Segment(None, lines, raw, complaint=lines.complaint(path))


def joined(segments: list[Segment]) -> Lines:
    """What all files of a ledger say together."""
    lines = Lines()
    for segment in segments:
        lines.absorb(segment.lines)
    return lines


def by_conditions(segments: list[Segment], lines: Lines) -> list[tuple[RunConditions | None, list[str]]]:
    """The rows' keys by the conditions under which they were made, each once."""
    found: list[tuple[RunConditions | None, list[str]]] = []
    seen: set[str] = set()
    for segment in segments:
        rows = [key for key in segment.lines.scores if key in lines.scores and key not in seen]
        seen.update(rows)
        same = next((each for conditions, each in found if conditions == segment.conditions), None)
        if same is not None:
            same += rows
        elif rows:
            found.append((segment.conditions, rows))
    return found


def _summary(run: str, plan: RunPlan, lines: Lines) -> RunSummary:
    missing = {key: shown for key, shown in plan.images.items() if key not in lines.scores}
    failed = {key: lines.failures[key] for key in missing if key in lines.failures}
    halved = sum(key in lines.halved for key in plan.images if key not in missing)
    return RunSummary(plan.title, len(plan.images), missing, failed, halved, sum(lines.parts.get(run, {}).values(), Cost()))
