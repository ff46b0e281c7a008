"""A run: the results that lie in one folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from neuroscope.attribution.recording import Recording
from neuroscope.core.artifacts import Artifact, load, read_header
from neuroscope.core.errors import ForeignFile, InvalidFile, InvalidInput
from neuroscope.core.results.scores import NeuronScores
from neuroscope.core.sites import Site
from neuroscope.evaluation._table import COLUMNS

Kind = TypeVar("Kind", bound=Artifact)
_TEXTS = {"intervention": str, "prompt": str, "metric": str}


@dataclass(frozen=True)
class Run:
    """The results of a folder, each by file name, in the order of the names.

    Attributes:
        folder: the folder.
        artifacts: what neuroscope saved (`*.safetensors`).
        headers: the headers of the artefacts.
        tables: evaluations (`*.csv`), with the columns of `evaluate`.
        images: the paths of PNG files.
        skipped: for each file that something else wrote, why it is left out.
    """

    folder: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    headers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def of_kind(self, kind: type[Kind]) -> dict[str, Kind]:
        """The artefacts of a class, by file name."""
        return {name: each for name, each in self.artifacts.items() if isinstance(each, kind)}

    def provenance(self, file: str) -> dict[str, str]:
        """What a file's header records of model, family, concept and method."""
        return self.headers[file].get("provenance") or {}

    def recorded(self, name: str) -> list[str]:
        """The distinct values that all provenances record under one name, such as "model"."""
        values = (self.provenance(file).get(name) for file in self.headers)
        return list(dict.fromkeys(value for value in values if value))

    def sites(self) -> dict[str, Site]:
        """The sites of the run's recordings and neuron scores, by path."""
        described = [each.sites for each in self.artifacts.values() if isinstance(each, Recording | NeuronScores)]
        return {site.path: site for sites in described for site in sites}


def read_run(folder: Path) -> Run:
    """Reads a folder of results.

    Raises:
        InvalidInput: the folder does not exist, or holds nothing that a report could show.
        InvalidFile: one of the results is damaged.
    """
    try:
        exists = folder.is_dir()
    except OSError:  # a name that no folder can have
        exists = False
    if not exists:
        raise InvalidInput(f"there is no folder {folder}; give one with results, such as `neuroscope demo` writes")
    run = Run(folder)
    for path in sorted(folder.iterdir()):
        try:
            _read(path, run)
        except ForeignFile as error:
            run.skipped[path.name] = str(error).replace(str(path), path.name)
    if not (run.artifacts or run.tables or run.images):
        reasons = "".join(f"; {reason}" for reason in run.skipped.values())
        raise InvalidInput(f"{folder} holds no results to report{reasons}; save some there with -o, or run `neuroscope demo`")
    return run


def _read(path: Path, run: Run) -> None:
    """Adds a file to the run; files with other suffixes than a run's are ignored."""
    if not path.is_file():
        return
    if path.suffix == ".safetensors":
        run.artifacts[path.name] = load(path)
        run.headers[path.name] = read_header(path)
    elif path.suffix == ".png":
        run.images[path.name] = path
    elif path.suffix == ".csv":
        run.tables[path.name] = _table(path)


def _table(path: Path) -> pd.DataFrame:
    """An evaluation, one row per image and metric.

    Raises:
        ForeignFile: the table has other columns, or no row.
        InvalidFile: the file is not a table, or a score or seed is not a finite number.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values={"score": ["", "nan"]}, dtype=_TEXTS)
    except (ValueError, OverflowError) as error:
        raise InvalidFile(f"{path} is no table ({str(error).strip()}); make or copy it again") from error
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise ForeignFile(f"{path} is no evaluation; it lacks the columns {', '.join(missing)}")
    if not len(table):
        raise ForeignFile(f"{path} is an evaluation without rows")
    for name in ("score", "seed"):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise InvalidFile(f"{path} has {name}s that are no numbers; make or copy it again")
    if table["seed"].isna().any() or np.isinf(table[["score", "seed"]]).any(axis=None):
        raise InvalidFile(f"{path} has a seed or a score that is missing or infinite; make or copy it again")
    return table
