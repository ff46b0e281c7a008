"""Data frames as tables of a page, with as many decimals as a column needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

#: The head of the column that replaces `low` and `high`.
INTERVAL = "95 % interval"
#: Columns of one quantity, which have the same number of decimals.
_SHARED = ({"score", "mean", "low", "high"}, {"effect", "next_best"})
_FIXED = {"seconds": 1, "peak GiB": 2}
_PROBABILITIES = ("p_value", "q_value")


@dataclass(frozen=True)
class Cell:
    """The text of a cell or of a column's head.

    Attributes:
        text: what the page shows.
        number: whether it is right-aligned, as numbers are.
    """

    text: str
    number: bool = False


@dataclass(frozen=True)
class RowGroup:
    """Rows of a table, under a heading of their own if `title` is given."""

    rows: Sequence[Sequence[Cell]]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        columns: the heads.
        groups: the rows, each as long as `columns`.
        caption: what the table shows.
        folded: whether the page hides it behind its caption until a click.
    """

    columns: Sequence[Cell]
    groups: Sequence[RowGroup]
    caption: str
    folded: bool = False


#: A table column by column: each head with its cells.
Columns = Sequence[tuple[Cell, list[Cell]]]


def tabled(table: pd.DataFrame, caption: str, *, by: str = "", folded: bool = False) -> Table:
    """A data frame as a table.

    Args:
        table: one row per row of the page. `low` and `high` become one column, "95 % interval".
        caption: what the table shows.
        by: the column that groups rows: each of its values becomes a heading above its rows. By default there is one group.
        folded: whether the page hides the table until a click.
    """
    if not by:
        columns = _columns(table)
        return Table([head for head, _ in columns], [_group(columns)], caption, folded)
    parts = {str(name): _columns(part.drop(columns=by)) for name, part in table.groupby(by, sort=False)}
    heads = [head for head, _ in next(iter(parts.values()))]
    return Table(heads, [_group(columns, name) for name, columns in parts.items()], caption, folded)


def decimals(values: Iterable[float]) -> int:
    """How many decimals a column needs: 3, or as many as give the largest of small values three significant figures."""
    largest = max((abs(float(value)) for value in values if math.isfinite(value)), default=0.0)
    return 3 if largest == 0 or largest >= 0.1 else 2 - math.floor(math.log10(largest))


def number(value: float, places: int = 3) -> str:
    """A number with `places` decimals and a true minus sign; a dash for NaN."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if not float(text) else text.replace("-", "−")


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
    """The decimals of each column of floats."""
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
    """Three decimals; below 0.001, a power of ten."""
    return number(value) if math.isnan(value) or value >= 0.001 else f"{value:.1e}".replace("-", "−")


def _group(columns: Columns, title: str = "") -> RowGroup:
    return RowGroup([list(row) for row in zip(*(cells for _, cells in columns), strict=True)], title)
