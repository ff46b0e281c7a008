"""The lines of a ledger, each with a checksum: a finished row's scores, a run's images, a failure, or what a part of a run has cost."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from neuroscope.core.errors import counted
from neuroscope.core.results.quality import Cost

#: One row's scores by the metrics' names.
Scores = dict[str, float]
_Number = float | Literal["nan", "inf", "-inf"]
_TEXTS: dict[str, Literal["nan", "inf", "-inf"]] = {"nan": "nan", "inf": "inf", "-inf": "-inf"}
_COST_WIDTH = 320  # a cost is written again and again in its place
_ROW = re.compile(rb'\s*\{\s*"(key|scores|run)"\s*:.*"(scores|cost)"|\s*\{\s*"scores"\s*:')
_OLDER = re.compile(rb'\{"key": "[^"]*", "scores": \{[^{}]*\}\}\s*$')
_BEGUN = re.compile(rb'\{\s*"(key|run)"\s*:\s*"[0-9a-f]*("|$)')


class _Row(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A finished row. Scores that are no finite numbers are written as text, as JSON knows none; `halved` stands where it is true."""

    key: str
    scores: dict[str, _Number]
    attempt: int
    check: str
    halved: bool = False


class _Spent(msgspec.Struct, forbid_unknown_fields=True):
    """What a part of a run has cost so far."""

    run: str
    part: str
    cost: tuple[float, float, int]
    check: str


class _Planned(msgspec.Struct, forbid_unknown_fields=True):
    """The images that a run needs, by their keys."""

    planned: str
    title: str
    images: dict[str, str]
    check: str


class _Failed(msgspec.Struct, forbid_unknown_fields=True):
    """Images that could not be made, and why."""

    failed: list[str]
    error: str
    check: str


_ROWS, _SPENT = msgspec.json.Decoder(_Row), msgspec.json.Decoder(_Spent)
_PLANNED, _FAILED = msgspec.json.Decoder(_Planned), msgspec.json.Decoder(_Failed)
_ENCODER = msgspec.json.Encoder()


def score_line(key: str, scores: Scores, attempt: int = 0, halved: bool = False) -> bytes:
    """The line of a finished row.

    Args:
        key: of all that the scores depend on.
        scores: by the metrics' names.
        attempt: how often the row was made before, because what was written did not agree.
        halved: whether it was made in a group that did not fit the memory and was halved.
    """
    written: dict[str, _Number] = {
        name: float(value) if math.isfinite(value) else _TEXTS[str(float(value))] for name, value in scores.items()
    }
    return _ENCODER.encode(_Row(key, written, attempt, _check_scores(key, scores, attempt, halved), halved)) + b"\n"


def cost_line(run: str, part: str, cost: Cost) -> bytes:
    """The line of what a part of a run has cost, always of one length."""
    line = _ENCODER.encode(_Spent(run, part, (cost.nfe, cost.seconds, cost.peak_bytes), _check_cost(run, part, cost)))
    return line.ljust(_COST_WIDTH - 1) + b"\n"


def plan_line(run: str, title: str, images: Mapping[str, str]) -> bytes:
    """The line of images that a run needs.

    Args:
        run: the hash of what was asked for.
        title: what was asked for, for readers.
        images: by key what each shows, for readers.
    """
    return _ENCODER.encode(_Planned(run, title, dict(images), _checksum([run, title, images]))) + b"\n"


def failure_line(keys: Sequence[str], error: str) -> bytes:
    """The line of images that could not be made."""
    return _ENCODER.encode(_Failed(list(keys), error, _checksum([list(keys), error]))) + b"\n"


def without_older_costs(raw: bytes) -> bytes:
    """Lines without those costs that a later line of the same part of a run replaces."""
    newest: dict[tuple[str, str], bytes] = {}
    others = []
    for line in raw.splitlines(keepends=True):
        try:
            spent = _SPENT.decode(line)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            others.append(line)
        else:
            newest[spent.run, spent.part] = line
    return b"".join([*others, *newest.values()])


@dataclass
class RunPlan:
    """The images that a run needs.

    Attributes:
        title: what was asked for.
        images: by key what each shows.
    """

    title: str
    images: dict[str, str] = field(default_factory=dict)


@dataclass
class Lines:
    """What the lines of a file say.

    Attributes:
        scores: by key, the scores of rows that hold.
        parts: by run and part, what it has cost.
        attempts: by key, how often a row was made.
        halved: the keys of rows that were made in groups which did not fit the memory.
        disputed: the keys of rows whose newest lines differ.
        plans: by run, the images that it needs.
        failures: by key, why an image could not be made.
        damaged: how many lines hold no row.
        older: how many of these are rows of an older version, without a checksum.
        torn: whether the last line was cut short.
        unended: whether the last line is whole but for its end.
        length: in bytes, up to the end of the last whole line.
        is_ledger: whether the file is empty or any line is or was a row.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    parts: dict[str, dict[str, Cost]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    halved: set[str] = field(default_factory=set)
    disputed: set[str] = field(default_factory=set)
    plans: dict[str, RunPlan] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    damaged: int = 0
    older: int = 0
    torn: bool = False
    unended: bool = False
    length: int = 0
    is_ledger: bool = True

    @classmethod
    def of(cls, raw: bytes) -> Lines:
        """All lines of a file."""
        *lines, last = raw.split(b"\n")
        found = cls(length=len(raw) - len(last))
        good = sum(found._take(line) for line in lines)
        damaged = [line for line in lines if line.strip()]
        if last.strip():
            found.unended = found._take(last)
            found.torn = not found.unended and bool(_BEGUN.match(last) or b'{"key":"'.startswith(last))
            found.damaged += not found.unended and not found.torn
        found.damaged += len(damaged) - good
        found.older = sum(bool(_OLDER.match(line)) for line in lines)
        found.is_ledger = bool(good or found.unended or found.torn or not raw.strip() or any(map(_ROW.match, lines)))
        for key in found.disputed:
            found.scores.pop(key, None)
        return found

    def absorb(self, other: Lines) -> None:
        """Adds what the lines of another file say."""
        for key, attempt in other.attempts.items():
            self._keep(key, other.scores.get(key), attempt, key in other.halved)
        for key in self.disputed:
            self.scores.pop(key, None)
        for run, parts in other.parts.items():
            for part, cost in parts.items():
                self._keep_cost(run, part, cost)
        for run, plan in other.plans.items():
            self._keep_plan(run, plan.title, plan.images)
        self.failures |= other.failures

    def attempt(self, key: str) -> int:
        """The number of a row's next attempt."""
        return self.attempts[key] + 1 if key in self.attempts else 0

    def complaint(self, path: Path) -> str:
        """What is to be said of a file's lines; nothing where all hold."""
        said = []
        if self.damaged:
            older = f", {self.older} of an older version without checksums" if self.older else ""
            said.append(f"{counted(self.damaged, 'line', ('is', 'are'))} damaged{older}")
        if self.disputed:
            said.append(f"{counted(len(self.disputed), 'row', ('stands', 'stand'))} there twice with different scores")
        if self.torn:
            said.append("its last line was cut short, as when a run is killed")
        return f"{path}: {' and '.join(said)}; these rows are not used, and what is needed of them is made again" if said else ""

    def _take(self, line: bytes) -> bool:
        """Keeps what a line says; False where it says nothing that holds."""
        return bool(line.strip()) and (
            self._take_scores(line) or self._take_cost(line) or self._take_plan(line) or self._take_failure(line)
        )

    def _take_scores(self, line: bytes) -> bool:
        try:
            row = _ROWS.decode(line)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return False
        scores = {name: float(value) for name, value in row.scores.items()}
        numbers = [value for value in row.scores.values() if not isinstance(value, str)]
        if row.check != _check_scores(row.key, scores, row.attempt, row.halved) or not all(map(math.isfinite, numbers)):
            return False
        self._keep(row.key, scores, row.attempt, row.halved)
        return True

    def _keep(self, key: str, scores: Scores | None, attempt: int, halved: bool) -> None:
        """Keeps a row's scores if no later attempt is known; None where those of this attempt differ."""
        before = self.attempts.get(key, -1)
        if attempt > before:
            self.attempts[key] = attempt
            self.disputed.discard(key)
            self.halved.discard(key)
            if scores is not None:
                self.scores[key] = scores
        if attempt < before:
            return
        self.halved |= {key} if halved else set()
        if key in self.disputed:
            return
        if scores is None or not same_scores(scores, self.scores[key]):
            self.disputed.add(key)

    def _take_cost(self, line: bytes) -> bool:
        try:
            spent = _SPENT.decode(line)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return False
        cost = Cost(*spent.cost)
        if spent.check != _check_cost(spent.run, spent.part, cost):
            return False
        self._keep_cost(spent.run, spent.part, cost)
        return True

    def _keep_cost(self, run: str, part: str, cost: Cost) -> None:
        parts = self.parts.setdefault(run, {})
        parts[part] = max(cost, parts.get(part, cost), key=lambda each: each.nfe)

    def _take_plan(self, line: bytes) -> bool:
        try:
            plan = _PLANNED.decode(line)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return False
        if plan.check != _checksum([plan.planned, plan.title, plan.images]):
            return False
        self._keep_plan(plan.planned, plan.title, plan.images)
        return True

    def _keep_plan(self, run: str, title: str, images: Mapping[str, str]) -> None:
        self.plans.setdefault(run, RunPlan(title)).images.update(images)

    def _take_failure(self, line: bytes) -> bool:
        try:
            failure = _FAILED.decode(line)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return False
        if failure.check != _checksum([failure.failed, failure.error]):
            return False
        self.failures |= dict.fromkeys(failure.failed, failure.error)
        return True


def same_scores(one: Scores, other: Scores) -> bool:
    """Whether two rows hold the same numbers to the bit; NaN equals NaN."""
    return _form(one) == _form(other)


def _form(scores: Scores) -> list[list[str]]:
    """Scores as text that tells any two numbers apart, and in which NaN equals NaN."""
    return sorted([name, float(value).hex()] for name, value in scores.items())


def _check_scores(key: str, scores: Scores, attempt: int, halved: bool) -> str:
    return _checksum([key, _form(scores), attempt, *(["halved"] if halved else [])])


def _check_cost(run: str, part: str, cost: Cost) -> str:
    return _checksum([run, part, float(cost.nfe).hex(), float(cost.seconds).hex(), cost.peak_bytes])


def _checksum(values: object) -> str:
    return hashlib.sha256(_ENCODER.encode(values)).hexdigest()[:16]
