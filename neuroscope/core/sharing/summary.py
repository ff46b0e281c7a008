"""Summaries: what a person sees of an object in a notebook and on a model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from neuroscope.core.sharing import html

if TYPE_CHECKING:
    import pandas as pd

#: How many rows of a table are shown.
ROWS = 10


@dataclass(frozen=True)
class Summary:
    """What is seen of an object: a line, a small heatmap and a table.

    Attributes:
        verdict: what it says, in one line.
        columns: the table's head.
        rows: its first rows, at most 10, as text.
        count: how many rows there are in all.
        heat: by label, the numbers of a row of cells; NaN stays empty. Cells are white at 0 and dark at the largest number.
        unit: what the heatmap's columns and colours are.
    """

    verdict: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    count: int = 0
    heat: Mapping[str, Sequence[float]] = field(default_factory=dict)
    unit: str = ""

    @classmethod
    def of(cls, verdict: str, table: pd.DataFrame, heat: Mapping[str, Sequence[float]] | None = None, unit: str = "") -> Self:
        """The summary of a table, whose first rows it shows; columns without any value are left out."""
        shown = table.head(ROWS).dropna(axis="columns", how="all")
        rows = tuple(tuple(said(each) for each in row) for row in shown.itertuples(index=False))
        return cls(verdict, tuple(map(str, shown.columns)), rows, len(table), heat or {}, unit)


class Shown:
    """What notebooks show by its summary."""

    def summary(self) -> Summary:
        """What is seen of this in a notebook: by default its repr alone."""
        return Summary(repr(self))

    def _repr_html_(self) -> str:
        """One screen of HTML, with a heatmap in SVG; all text is escaped."""
        seen = self.summary()
        return html.page(html.verdict(seen.verdict), html.heatmap(seen.heat, seen.unit), html.table(seen.columns, seen.rows, seen.count))


def said(value: Any) -> str:
    """A cell's text; numbers with four digits, nothing for what is missing."""
    if isinstance(value, float) or (hasattr(value, "dtype") and getattr(value.dtype, "kind", "") == "f"):
        return "" if value != value else f"{value:.4g}"  # NaN differs from itself
    return "" if value is None or str(value) == "<NA>" else str(value)


def binned(values: Iterable[Any], count: int = 64) -> list[float]:
    """At most `count` numbers for a row of cells, each the largest of as many neighbours as it stands for."""
    given = [float(each) for each in values]
    size = -(-len(given) // count) or 1
    return [max(given[first : first + size]) for first in range(0, len(given), size)]
