"""A run: the results that lie in one folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from neuroscope._errors import InvalidFile
from neuroscope.artifacts import Artifact, load, read_header
from neuroscope.evaluation import COLUMNS

Kind = TypeVar("Kind", bound=Artifact)


@dataclass(frozen=True)
class Run:
    """What a folder of results holds.

    Attributes:
        folder: where it lies.
        artifacts: by file name, what neuroscope saved.
        headers: by file name, the headers of these.
        tables: by file name, evaluations.
        pictures: the PNG files.
        skipped: by file name, why it is left out.
    """

    folder: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    headers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def of_kind(self, kind: type[Kind]) -> dict[str, Kind]:
        """The artefacts of a class, by file name."""
        return {name: each for name, each in self.artifacts.items() if isinstance(each, kind)}


def read_run(folder: Path) -> Run:
    """Reads a folder of results.

    Raises:
        InvalidFile: there is no such folder, or nothing in it that a report could show.
    """
    if not folder.is_dir():
        raise InvalidFile(f"there is no folder {folder}; give one with results, such as `neuroscope demo` writes")
    run = Run(folder)
    for path in sorted(folder.iterdir()):
        try:
            _read(path, run)
        except InvalidFile as error:
            run.skipped[path.name] = str(error)
    if not run.artifacts and not run.tables:
        reasons = "".join(f"; {name}: {reason}" for name, reason in run.skipped.items())
        raise InvalidFile(f"{folder} holds no results to report{reasons}; save some there with -o, or run `neuroscope demo`")
    return run


def _read(path: Path, run: Run) -> None:
    if path.suffix == ".safetensors":
        run.artifacts[path.name] = load(path)
        run.headers[path.name] = read_header(path)
    elif path.suffix == ".png":
        run.pictures[path.name] = path
    elif path.suffix == ".csv":
        table = _table(path)
        if set(COLUMNS) <= set(table.columns):
            run.tables[path.name] = table
        else:
            run.skipped[path.name] = f"it is no evaluation; one has the columns {', '.join(COLUMNS)}"


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InvalidFile(f"{path} is no table: {error}") from error
