"""What all plots share: the size of figures and fonts, heatmaps, and panels inside one axes. Sizes are in inches, fonts in points."""

from __future__ import annotations

import textwrap
from typing import Any, Literal, cast, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from neuroscope.core import checks

#: The width of a paper's column.
COLUMN = 3.4
SMALL, NORMAL = 6.5, 8.0
DIVERGING, SEQUENTIAL = "vlag", "Blues"
#: Pixels per inch of the image files that plots are written to.
SAVED_DPI = 200
Context = Literal["paper", "talk"]
CONTEXTS: tuple[str, ...] = get_args(Context)
#: The share of a panel's cell above it, for its title, and left of it, for its tick labels.
_ABOVE, _LEFT = 0.28, 0.16
#: The height of a panel's title, in inches.
_TITLE = 0.15
#: Axes that are this many times as wide as tall have their panels side by side.
_WIDE = 1.8


def new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure of that size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained", dpi=150)[1]


def check_axes(ax: Any) -> None:
    """Refuses what is neither None nor axes.

    Raises:
        InvalidInput: `ax` is something else, such as a figure.
    """
    if ax is not None:
        checks.instance("ax", ax, Axes, "plt.subplots()[1]")


def figure_of(ax: Axes) -> Figure:
    """The figure that holds the axes, the outermost one if figures are nested."""
    return cast("Figure", ax.get_figure(root=True))


def enlarge(figure: Figure) -> None:
    """Makes a paper's figure one of a talk: its sides, texts and lines grow by the ratio of seaborn's contexts of these names.

    Sides grow less than texts, so that these are larger beside the rest.
    """
    paper, talk = (sns.plotting_context(name) for name in ("paper", "talk"))
    ratio = talk["font.size"] / paper["font.size"]
    for text in cast("list[Text]", figure.findobj(Text)):
        text.set_fontsize(text.get_fontsize() * ratio)
    for line in cast("list[Line2D]", figure.findobj(Line2D)):
        line.set_linewidth(line.get_linewidth() * ratio)
    figure.set_size_inches(figure.get_size_inches() * ratio**0.75)


def finish(ax: Axes, title: str) -> Axes:
    """Sets the title and the sizes of all labels; no text is read as a formula."""
    ax.set_title(title, fontsize=NORMAL, parse_math=False)
    ax.tick_params(labelsize=SMALL)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(NORMAL)
    for collection in ax.collections:
        if collection.colorbar is not None:
            collection.colorbar.ax.tick_params(labelsize=SMALL)
            collection.colorbar.ax.yaxis.label.set(fontsize=SMALL, parse_math=False)
            collection.colorbar.outline.set_visible(False)
    return ax


def side_by_side(ax: Axes) -> bool:
    """Whether panels inside the axes stand side by side rather than in a column."""
    width, height = figure_of(ax).get_size_inches() * ax.get_position().size
    return bool(width > _WIDE * height)


def panels(ax: Axes, titles: list[str]) -> list[Axes]:
    """Axes inside `ax`, one per title: side by side in wide axes, else in a column. A single title gets `ax` itself.

    `ax` becomes a frame without lines whose axis labels belong to all panels; the panels are its `child_axes`.
    """
    if len(titles) == 1:
        return [ax]
    count = len(titles)
    if side_by_side(ax):
        inner = 1 / (count + _LEFT * (count - 1))
        cells = [(number * (1 + _LEFT) * inner, 0.0, inner, 1 - _ABOVE / 2) for number in range(count)]
    else:
        inches = figure_of(ax).get_size_inches()[1] * ax.get_position().height
        first = min(_ABOVE, _TITLE * count / inches)  # above the first panel there is room for its title alone
        inner = 1 / (count - _ABOVE + first)
        cells = [(0.0, 1 - inner * (first + number + 1 - _ABOVE), 1.0, inner * (1 - _ABOVE)) for number in range(count)]
    made = [ax.inset_axes(cell) for cell in cells]
    for panel, title, (_, bottom, *_) in zip(made, titles, cells, strict=True):
        panel.set_title(title, fontsize=NORMAL, loc="left", pad=3, parse_math=False)
        panel.tick_params(labelsize=SMALL, labelbottom=bottom < 0.01)
        sns.despine(ax=panel)
    return made


def frame(ax: Axes, drawn: list[Axes]) -> None:
    """Gives `ax` invisible tick labels as wide as the panels', so that its axis labels stand beside these."""
    widest = max((label.get_text() for panel in drawn for label in panel.get_yticklabels()), key=len)
    sns.despine(ax=ax, left=True, bottom=True)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_yticks([0], [widest])
    ax.set_xticks([0], ["0"])
    ax.tick_params(labelcolor="none", color="none")


def heatmap(ax: Axes, table: pd.DataFrame, label: str, largest: float) -> None:
    """A heatmap of a table, white at 0 and below, dark at `largest`, with as many tick labels as there is room for.

    `label` stands beside the colour bar.
    """
    gap = 0.5 if table.shape[1] <= 40 else 0.0
    look: dict[str, Any] = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": largest, "linewidths": gap, "linecolor": "white"}
    sns.heatmap(table, ax=ax, xticklabels=False, yticklabels=False, cbar_kws={"label": label, "pad": 0.01}, **look)
    columns = [str(column) for column in table.columns]
    width, height = figure_of(ax).get_size_inches() * ax.get_position().size
    step = _step(len(columns) * (1 + max(map(len, columns))) * SMALL / 100 / width)
    ax.set_xticks(np.arange(0, len(columns), step) + 0.5, columns[::step], rotation=0)
    lines = max(1, int(72 * height / len(table) / (1.65 * SMALL)))
    names = [wrapped(str(name), max(14, int(4.5 * width)), lines) for name in table.index]
    ax.set_yticks(np.arange(len(table)) + 0.5, names, rotation=0, parse_math=False)


def wrapped(text: str, width: int = 16, lines: int | None = None) -> str:
    """A text in lines of at most `width` characters; of more lines than `lines` the rest is cut off."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))


def _step(crowding: float) -> int:
    """Every how many ticks one is labelled, a round number, if all labels together take `crowding` times the room."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step >= min(crowding, 1000))


def method_name(name: str) -> str:
    """A method's name as plots show it, without empty brackets."""
    return name.removesuffix("()").replace("()", "")
