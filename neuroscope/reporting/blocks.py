"""What a report's sections are made of: figures, tables and facts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from PIL import Image

DOTS = 200  # an inch; a page shows half as many, so that dense screens stay sharp

THUMBNAIL = 128


@dataclass(frozen=True)
class Figure:
    """A picture inside the page; on a phone it shrinks or, if it is dense, scrolls."""

    data: str
    width: int
    height: int
    caption: str
    scrolls: bool = True


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: named columns, and rows of a prompt and its pictures."""

    columns: Sequence[str]
    rows: list[tuple[str, list[str]]]
    caption: str


@dataclass(frozen=True)
class Cell:
    """A table's cell or column head."""

    text: str
    number: bool

    @property
    def name(self) -> str:
        """A column's name."""
        return self.text


@dataclass(frozen=True)
class Table:
    """A table; a folded one opens on a click."""

    columns: list[Cell]
    rows: list[list[Cell]]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Part:
    """One result inside a section."""

    title: str = ""
    said: str = ""
    facts: Sequence[tuple[str, Any]] = ()
    figures: Sequence[Figure] = ()
    sheet: Sheet | None = None
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A step of the story."""

    title: str
    parts: list[Part] = field(default_factory=list)
    text: str = ""


def drawn(ax: Axes, caption: str) -> Figure:
    """A plot as a figure; the plot is closed."""
    drawing = cast("Drawing", ax.get_figure(root=True))
    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=DOTS, format="png")
    plt.close(drawing)
    return shown(buffer.getvalue(), caption)


def shown(png: bytes, caption: str) -> Figure:
    """The bytes of a PNG file as a figure at half its pixels."""
    width, height = Image.open(io.BytesIO(png)).size
    return Figure(_inline(png), width // 2, height // 2, caption)


def sheet(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str], caption: str) -> Sheet:
    """A contact sheet of small pictures."""
    return Sheet(columns, [(name, [_small(each) for each in pictures]) for name, pictures in rows.items()], caption)


def _small(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return _inline(buffer.getvalue())


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def tabled(table: pd.DataFrame, caption: str = "", *, folded: bool = False) -> Table:
    """A data frame; numbers with three decimals stand right."""
    numeric = [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    columns = [Cell(str(name).replace("_", " "), number) for name, number in zip(table.columns, numeric, strict=True)]
    rows = [[Cell(_text(value), number) for value, number in zip(row, numeric, strict=True)] for row in table.itertuples(index=False)]
    return Table(columns, rows, caption, folded)


def _text(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    return str(value)
