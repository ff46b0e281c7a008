"""Figures as files."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from neuroscope.core import checks
from neuroscope.core.errors import InvalidFile, choose
from neuroscope.core.storage import write_beside
from neuroscope.report.plots._axes import CONTEXTS, SAVED_DPI, Context, enlarge, figure_of

#: The suffixes of files that a figure can be written to.
FORMATS = (".png", ".pdf", ".svg")


def write(ax: Axes, path: str | Path, *, context: Context = "paper") -> Path:
    """Writes the figure of `ax`, closes it and returns the path.

    Args:
        ax: what a plot returned.
        path: the file; its suffix (.png, .pdf or .svg) is the format. A PNG has 200 pixels per inch.
        context: "paper", or "talk" with texts and lines larger by the ratio of seaborn's contexts of these names.

    Raises:
        InvalidInput: an argument is of another kind.
        InvalidFile: the path has another suffix, or the file cannot be written.
    """
    checks.instance("ax", ax, Axes, "ns.plots.neurons(scores)")
    path = checks.path("path", path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InvalidFile(f"{path} has {f'the suffix {suffix}' if suffix else 'no suffix'}; a figure is written as {', '.join(FORMATS)}")
    choose("context", context, CONTEXTS)
    figure = figure_of(ax)
    if context == "talk":
        enlarge(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=SAVED_DPI, format=suffix.removeprefix("."))
    plt.close(figure)
    return write_beside(Path(path), buffer.getvalue())
