"""Merging: the ledgers of several shards become one."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from os import PathLike, fspath

from neuroscope.core import checks
from neuroscope.core.errors import InvalidFile, InvalidInput
from neuroscope.generation.ledgers.location import Location
from neuroscope.generation.ledgers.opening import is_line_file
from neuroscope.generation.ledgers.rows import Lines, cost_line, failure_line, plan_line, same_scores, score_line
from neuroscope.generation.ledgers.run_conditions import RunConditions
from neuroscope.generation.ledgers.segments import SUFFIX, Segment, encode
from neuroscope.generation.ledgers.summary import LedgerSummary, by_conditions, joined, read_ledger


def merge(ledgers: Iterable[str | PathLike[str]], output: str | PathLike[str], *, mixed: bool = False) -> LedgerSummary:
    """Joins ledgers, such as those of shards, into a new one, from which the same call makes its table without an image.

    The sources stay as they are. A contact sheet is not made from merged ledgers, as it would need images.

    Args:
        ledgers: folders, URLs or JSON-lines files.
        output: a folder or URL that does not exist or is empty.
        mixed: join rows of one run although they were made under different conditions, such as versions of torch.

    Returns:
        What the new ledger holds, with what is still missing.

    Raises:
        InvalidInput: no ledger is given; scores of one image differ between ledgers; or rows of one run were made under different
            conditions.
        InvalidFile: one of them is damaged, is no ledger or cannot be read, or the output cannot be written or is not empty.
    """
    checks.flag("mixed", mixed)
    checks.path("output", output)
    if not isinstance(ledgers, Iterable | PathLike):
        raise InvalidInput(f"ledgers is {checks.shown(ledgers)}, which is no list of ledgers; give their folders, URLs or .jsonl files")
    given = [ledgers] if isinstance(ledgers, str | PathLike) else list(ledgers)
    for each in given:
        checks.path("one of ledgers", each)
    names = [fspath(each) for each in given]
    if not names:
        raise InvalidInput("there is nothing to merge; give at least one ledger")
    target = _empty(fspath(output))
    sources = {name: read_ledger(name) for name in dict.fromkeys(names)}
    for segments in sources.values():
        _refuse_damage(segments)
    _refuse_conflicts(sources)
    segments = [segment for each in sources.values() for segment in each]
    lines = joined(segments)
    if not mixed:
        _refuse_mixed(segments, lines)
    _write(target, segments, lines)
    return LedgerSummary.of(output)


def _empty(where: str) -> Location:
    """The location of the new ledger; raises InvalidFile where something is there."""
    if is_line_file(where):
        raise InvalidFile(f"{where} is a file, or named like one; give a new folder, as merged ledgers are folders")
    location = Location(where)
    if names := location.names():
        raise InvalidFile(f"{where} is not empty, it holds {names[0]}; give a new folder, or remove it first")
    return location


def _refuse_damage(segments: Sequence[Segment]) -> None:
    if damaged := [segment.complaint for segment in segments if segment.complaint]:
        raise InvalidFile(f"{damaged[0]}; nothing was merged. Run that part again, which makes the lost rows again, or merge without it")


def _refuse_conflicts(sources: dict[str, list[Segment]]) -> None:
    """Raises InvalidInput where two ledgers, or two files of one, hold different scores of an image."""
    first: dict[str, str] = {}
    every = {name: joined(segments) for name, segments in sources.items()}
    for name, lines in every.items():
        if lines.disputed:
            raise InvalidInput(f"{name} holds two different scores of {_shown(min(lines.disputed), every)}; run it again, then merge")
        for key, scores in lines.scores.items():
            other = first.setdefault(key, name)
            if not same_scores(scores, every[other].scores[key]):
                raise InvalidInput(
                    f"{other} and {name} hold different scores of {_shown(key, every)}: {every[other].scores[key]} and {scores}; "
                    "nothing was merged. Leave one of them out, or make both again under the same conditions"
                )


def _shown(key: str, every: dict[str, Lines]) -> str:
    """What the image of a key shows."""
    plans = (plan for lines in every.values() for plan in lines.plans.values())
    return next((f"{plan.images[key]} (key {key})" for plan in plans if key in plan.images), f"the key {key}")


def _refuse_mixed(segments: list[Segment], lines: Lines) -> None:
    """Raises InvalidInput where rows of one run were made under different conditions."""
    under = [(conditions, set(rows)) for conditions, rows in by_conditions(segments, lines) if conditions is not None]
    for plan in lines.plans.values():
        used: list[RunConditions] = [conditions for conditions, rows in under if not rows.isdisjoint(plan.images)]
        if len(used) > 1:
            different = used[1].differences(used[0]).replace("now", "elsewhere")
            raise InvalidInput(
                f"rows of {plan.title} were made under different conditions: {different}; their last digits could differ. Make them again "
                "under the same, or give mixed=True (--mixed), which keeps the conditions of each"
            )


def _write(target: Location, segments: list[Segment], lines: Lines) -> None:
    """Writes one file for rows of each of the conditions; the first holds what runs need and have cost too."""
    beside = [plan_line(run, plan.title, plan.images) for run, plan in lines.plans.items()]
    beside += [failure_line([key], error) for key, error in lines.failures.items() if key not in lines.scores]
    beside += [cost_line(run, part, cost) for run, parts in lines.parts.items() for part, cost in parts.items()]
    for number, (conditions, keys) in enumerate(by_conditions(segments, lines) or [(None, [])]):
        rows = [score_line(key, lines.scores[key], lines.attempts[key], key in lines.halved) for key in keys]
        raw = b"".join([*(beside if not number else []), *rows])
        target.write(f"{uuid.uuid4().hex}-{number:08}-0{SUFFIX}", encode(raw, conditions, is_merged=True))
