"""Ledgers by what verbs are given as `output`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from neuroscope.core import checks
from neuroscope.generation.ledgers.folder import Folder
from neuroscope.generation.ledgers.ledger import Ledger
from neuroscope.generation.ledgers.line_file import LineFile
from neuroscope.generation.ledgers.location import Location, is_url
from neuroscope.generation.ledgers.run_conditions import RunConditions


@dataclass(frozen=True)
class ResumeAnyway:
    """As `output`: goes on with a ledger although its rows were made under other conditions, such as another version of torch.

    Each row's file says under which conditions it was made; `neuroscope show LEDGER` lists them.

    Attributes:
        ledger: the folder or URL.

    Raises:
        InvalidInput: it is no path.
    """

    ledger: str | os.PathLike[str]

    def __post_init__(self) -> None:
        checks.path("ledger", self.ledger)


#: What a verb's `output` may be.
LedgerPlace = str | os.PathLike[str] | ResumeAnyway | None


def check_output(output: object) -> None:
    """Raises InvalidInput for what is no place of a ledger."""
    if output is not None and not isinstance(output, ResumeAnyway):
        checks.path("output", output)


def open_ledger(output: LedgerPlace, conditions: Callable[[], RunConditions]) -> Ledger:
    """The ledger of a verb's `output`: in memory for None, in one JSON-lines file, or in a folder.

    A file that exists goes on as JSON lines, whatever its name, and a name that ends in .jsonl begins as such; all else is a folder.

    Args:
        output: a path, a URL that fsspec knows, or `ResumeAnyway` of one.
        conditions: tells under which conditions images are made now.

    Raises:
        InvalidInput: a URL that cannot be opened.
    """
    if output is None:
        return Ledger()
    where = os.fspath(output.ledger if isinstance(output, ResumeAnyway) else output)
    if is_line_file(where):
        return LineFile(Path(where).expanduser())
    return Folder(Location(where), conditions(), mixed=isinstance(output, ResumeAnyway))


def is_line_file(where: str) -> bool:
    """Whether a ledger is one JSON-lines file, not a folder."""
    path = Path(where).expanduser()
    return not is_url(where) and not path.is_dir() and (path.exists() or path.suffix == ".jsonl")
