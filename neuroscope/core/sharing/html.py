"""HTML of plain strings, for notebooks: a line, a heatmap in SVG and a table. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from neuroscope.core.errors import counted

_FONT = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.4"
_CELL = "padding:1px 10px 1px 0;text-align:left;white-space:nowrap"
_LIGHT, _DARK = (244, 246, 250), (31, 78, 121)
_WIDTH, _ROW, _LABEL, _MOST = 520, 14, 96, 16


def page(*parts: str) -> str:
    """Parts of HTML below each other."""
    return f'<div style="{_FONT};max-width:760px;overflow-x:auto">{"".join(parts)}</div>'


def verdict(text: str) -> str:
    """The line on top."""
    return f'<div style="font-weight:600;margin:2px 0 6px;overflow-wrap:anywhere">{escape(text)}</div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], count: int) -> str:
    """A table, with a line that says how many rows of all are shown; nothing without columns."""
    if not columns:
        return ""
    head = "".join(f'<th style="{_CELL};font-weight:600">{escape(each)}</th>' for each in columns)
    cells = ["".join(f'<td style="{_CELL}">{escape(each)}</td>' for each in row) for row in rows]
    body = "".join(f"<tr>{each}</tr>" for each in cells)
    more = f'<div style="opacity:.65">the first {len(rows)} of {counted(count, "row")}</div>' if count > len(rows) else ""
    look = "border-collapse:collapse;margin:4px 0;font-size:13px"
    return f'<table style="{look}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}'


def heatmap(rows: Mapping[str, Sequence[float]], unit: str) -> str:
    """A heatmap: one row a label, at most 16 of them; nothing without rows.

    Cells are light at 0 and below and dark at the largest number; a cell of NaN is left out.
    """
    if not rows:
        return ""
    shown = dict(list(rows.items())[:_MOST])
    largest = max((value for each in shown.values() for value in each if math.isfinite(value)), default=0.0)
    longest = max(1, *(len(each) for each in shown.values()))
    width = min(18.0, (_WIDTH - _LABEL) / longest)
    drawn = "".join(_row(number, label, each, width, largest) for number, (label, each) in enumerate(shown.items()))
    more = f"; the first {len(shown)} of {counted(len(rows), 'row')}" if len(rows) > len(shown) else ""
    said = escape(f"{unit}; dark: {largest:.3g}{more}")
    height = _ROW * len(shown) + 2
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'role="img" aria-label="{said}" style="max-width:100%">{drawn}</svg>'
    )
    return f'<div style="margin:4px 0">{svg}<div style="opacity:.65">{said}</div></div>'


def _row(number: int, label: str, values: Sequence[float], width: float, largest: float) -> str:
    top = number * _ROW + 1
    cells = "".join(
        f'<rect x="{_LABEL + place * width:.1f}" y="{top}" width="{width * 0.92:.2f}" height="{_ROW - 2}" '
        f'fill="{_colour(value, largest)}"/>'
        for place, value in enumerate(values)
        if math.isfinite(value)
    )
    text = escape(label if len(label) <= 16 else f"{label[:15]}…")
    return f'<text x="0" y="{top + 10}" font-size="11" fill="currentColor">{text}</text>{cells}'


def _colour(value: float, largest: float) -> str:
    share = min(1.0, max(0.0, value / largest)) if largest > 0 else 0.0
    red, green, blue = (round(light + share * (dark - light)) for light, dark in zip(_LIGHT, _DARK, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
