"""Data frames as tables of a page, with as many decimals as a column needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from neuroscope.report.blocks import Cell, RunBatch, Table

INTERVAL = "95 % interval"
_SHARED = ({"score", "mean", "low", "high"}, {"effect", "next_best"})
_FIXED = {"seconds": 1, "peak GiB": 2}
_PROBABILITIES = ("p_value", "q_value")


def tabled(table: pd.DataFrame, caption: str, *, by: str = "", folded: bool = False) -> Table:
    """A data frame; `low` and `high` become one interval, and rows of one value of column `by` a group under it."""
    if not by:
        columns = _columns(table)
        return Table([head for head, _ in columns], [_group(columns)], caption, folded)
    parts = {str(name): _columns(part.drop(columns=by)) for name, part in table.groupby(by, sort=False)}
    heads = [head for head, _ in next(iter(parts.values()))]
    return Table(heads, [_group(columns, name) for name, columns in parts.items()], caption, folded)


def decimals(values: Iterable[float]) -> int:
    """Three decimals, or as many as show the largest of small values with three figures."""
    largest = max((abs(float(value)) for value in values if math.isfinite(value)), default=0.0)
    return 3 if largest == 0 or largest >= 0.1 else 2 - math.floor(math.log10(largest))


def number(value: float, places: int = 3) -> str:
    """A number with a true minus; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if not float(text) else text.replace("-", "−")


def counted(count: int, noun: str) -> str:
    """A number of things, in words such as "1 prompt" and "2 prompts"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


Columns = Sequence[tuple[Cell, list[Cell]]]


def _columns(table: pd.DataFrame) -> Columns:
    places = _places(table)
    columns = []
    for name in table.columns:
        if name == "low":
            ends = [[number(end, places["low"]) for end in table[side]] for side in ("low", "high")]
            columns.append((Cell(INTERVAL, True), [Cell(f"{low} to {high}", True) for low, high in zip(*ends, strict=True)]))
        elif name != "high":
            columns.append(_column(table[name], places.get(name, 3)))
    return columns


def _places(table: pd.DataFrame) -> dict[str, int]:
    """The decimals of each column; columns of one quantity have the same."""
    numeric = table.select_dtypes("float")
    places = {}
    for name in numeric.columns:
        together = next((group & set(numeric.columns) for group in _SHARED if name in group), {name})
        places[name] = _FIXED.get(name, decimals(numeric[list(together)].to_numpy().ravel()))
    return places


def _column(values: pd.Series, places: int) -> tuple[Cell, list[Cell]]:
    name = str(values.name)
    numeric = pd.api.types.is_numeric_dtype(values)
    if name in _PROBABILITIES:
        texts = [_probability(value) for value in values]
    elif pd.api.types.is_float_dtype(values):
        texts = [number(value, places) for value in values]
    else:
        texts = ["–" if value is None or value != value else f"{value:,}" if numeric else str(value) for value in values]
    return Cell(name.replace("_", " "), numeric), [Cell(text, numeric) for text in texts]


def _probability(value: float) -> str:
    return number(value) if math.isnan(value) or value >= 0.001 else f"{value:.1e}".replace("-", "−")


def _group(columns: Columns, title: str = "") -> RunBatch:
    return RunBatch([list(row) for row in zip(*(cells for _, cells in columns), strict=True)], title)
