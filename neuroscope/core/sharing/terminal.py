"""Tables for a terminal and for a pipe, drawn by rich."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

#: The cells of a line that texts may be folded to.
_NARROWEST = 12
_GAP = 2
_ENDLESS = 1_000_000


def table(frame: pd.DataFrame, width: int | None = None) -> str:
    """A table as text: numbers to three places, no column that holds NaN alone, and no value cut.

    Args:
        frame: its rows and columns.
        width: cells a line; by default the terminal's, and in a pipe as many as the table needs, so that each row is one line.
            Texts are folded to fit; a table whose numbers alone do not fit is wider.
    """
    from rich.console import Console

    outside, text = Console(), io.StringIO()
    drawn = _drawn(frame.dropna(axis="columns", how="all") if len(frame) else frame)
    if width is None:
        width = outside.width if outside.is_terminal else _ENDLESS
    least = sum((column.min_width or 0) + _GAP for column in drawn.columns)
    console = Console(file=text, force_terminal=outside.is_terminal, width=max(width, least), highlight=False)
    console.print(drawn, crop=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _drawn(frame: pd.DataFrame) -> Table:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    columns = {str(name): _cells(frame[name]) for name in frame.columns}
    for (name, cells), kind in zip(columns.items(), frame.dtypes, strict=True):
        is_number, longest = kind.kind in "iuf", max(Text(cell).cell_len for cell in (name, *cells))
        least = longest if is_number else min(longest, max(_NARROWEST, Text(name).cell_len))
        drawn.add_column(Text(name), justify="right" if is_number else "left", overflow="fold", no_wrap=is_number, min_width=least)
    for row in zip(*columns.values(), strict=True):
        drawn.add_row(*map(Text, row))
    return drawn


def _cells(column: pd.Series) -> list[str]:
    """A column's values as text; numbers to three places, or to three digits where places would hide some."""
    if column.dtype.kind != "f":
        return ["" if is_missing else " ".join(str(value).split()) for value, is_missing in zip(column, column.isna(), strict=True)]
    sizes = [abs(value) for value in column if math.isfinite(value) and value]
    form = ".3f" if not sizes or (min(sizes) >= 1e-3 and 0.1 <= max(sizes) < 1e6) else ".3g"
    return [f"{value:{form}}" for value in column]
