"""The dose plot: scores against the number of masked neurons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.core.statistics import is_share, mean_interval
from neuroscope.evaluation._response import ALL, NO_CHANGE, REFERENCES, SCORE, SHARE_OF_IMAGES, DoseResponse
from neuroscope.report.plots._axes import COLUMN, SMALL, check_axes, figure_of, finish, frame, new_axes, panels

#: Doses whose largest is this many times their smallest, or more, have a logarithmic axis.
_LOGARITHMIC = 8
#: Up to so many doses have a tick each.
_TICKS = 8
#: Lines whose ends are apart by at least this share of the axis are named at their ends.
_APART = 0.2
#: Between a line's end and its name, in points.
_BESIDE = 6
#: Between axes and the legend under their label, in inches.
_UNDER = 0.42
#: Up to so many ticks have scores that are no shares.
_SCORES = 4
#: The looks of lines in turn. Each later marker is larger and hollow, so that lines which coincide stay visible.
_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "tab:blue", "linewidth": 1.6, "marker": "o", "markersize": 3.5, "markerfacecolor": "tab:blue"},
    {"color": "tab:orange", "linewidth": 1.0, "linestyle": (0, (4, 2)), "marker": "s", "markersize": 6, "markerfacecolor": "none"},
    {"color": "tab:green", "linewidth": 1.0, "linestyle": ":", "marker": "D", "markersize": 8.5, "markerfacecolor": "none"},
    {"color": "tab:purple", "linewidth": 1.0, "linestyle": "-.", "marker": "^", "markersize": 11, "markerfacecolor": "none"},
)
#: The looks of what doses are compared with: levels, which no number of neurons changes.
_LEVELS: dict[str, dict[str, Any]] = {
    NO_CHANGE: {"color": "0.55", "linewidth": 1.2, "linestyle": (0, (1, 1))},
    ALL: {"color": "tab:red", "linewidth": 1.2, "linestyle": (0, (6, 2, 1, 2))},
}
_Interval = Callable[[pd.Series], tuple[float, float]]
_BAND: dict[str, Any] = {"alpha": 0.11, "linewidth": 0}


def dose(table: pd.DataFrame | DoseResponse, *, ax: Axes | None = None) -> Axes:
    """Scores against the number of masked neurons, with 95 % intervals over prompts: one panel per metric, one line per control.

    Intervals are those of `ns.summarize`: exact where all scores of a metric are 0 or 1. Panels of shares of images reach from 0 to 1.
    Doses that span a factor of 8 or more have a logarithmic axis. Of a dose response the untouched model and the mask of all neurons
    are level lines. Where metrics have different units, each panel names its own.

    Args:
        table: what `ns.dose_response` gives, or evaluations of masks of growing size, one after the other: the columns of `ns.evaluate` and
            `neurons`, the number of masked neurons. A column `control`, if there is one, names the lines, such as "top neurons" and
            "random neurons"; "no change" and "all neurons" are drawn as levels. A column `unit` gives each metric's; without one, scores
            that all lie between 0 and 1 are shares of images.
        ax: where to draw; by default a new figure, 3.4 inches wide.

    Returns:
        The axes. With several metrics they are a frame that holds the shared labels, and its `child_axes` are the panels: side by side
        where `ax` is much wider than tall, else in a column.

    Raises:
        InvalidInput: the table lacks a column or has no rows, `neurons` holds no numbers, or an argument is of another kind.
    """
    table = table.to_frame() if isinstance(table, DoseResponse) else table
    _check_table(table)
    check_axes(ax)
    by_metric = {str(metric): part for metric, part in table.groupby("metric", sort=False)}
    units = units_of(table, by_metric)
    leveled = "control" in table.columns and bool(table["control"].isin(REFERENCES).any())
    ax = ax or new_axes(COLUMN, (2.6 if len(by_metric) == 1 else 0.7 + 1.1 * len(by_metric)) + 0.4 * leveled)
    alike = len(set(units.values())) == 1
    titles = [metric if alike else f"{metric} ({unit})" for metric, unit in units.items()]
    drawn = dict(zip(panels(ax, titles), by_metric.values(), strict=True))
    lines = {panel: draw_metric(panel, part) for panel, part in drawn.items()}
    for (panel, part), unit in zip(drawn.items(), units.values(), strict=True):
        _scale(panel, _doses(part), unit)
    ax.set(xlabel="neurons in the mask", ylabel=next(iter(units.values())) if alike else "")
    if len(drawn) > 1:
        frame(ax, list(drawn))
    _name_below(ax, lines) if leveled else _name_lines(lines)
    return finish(ax, "masked neurons, 95 % intervals" if len(drawn) > 1 else f"{titles[0]}, 95 % interval")


def units_of(table: pd.DataFrame, by_metric: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Each metric's unit."""
    if "unit" in table.columns:
        return {metric: str(part["unit"].iloc[0]) for metric, part in by_metric.items()}
    return dict.fromkeys(by_metric, SHARE_OF_IMAGES if table["score"].between(0, 1).all() else SCORE)


def _doses(table: pd.DataFrame) -> pd.Series:
    """The numbers of neurons that lines have points at; those of levels where there is no line."""
    points = table[~table["control"].isin(REFERENCES)] if "control" in table.columns else table
    return (points if len(points) else table)["neurons"]


def _check_table(table: pd.DataFrame) -> None:
    checks.instance("table", table, pd.DataFrame, "ns.dose_response(...), or evaluations with a column `neurons`")
    if missing := {"neurons", "metric", "score"} - set(table.columns):
        raise InvalidInput(f"the dose table lacks the columns {', '.join(sorted(missing))}; add them to evaluate's table")
    if table[["neurons", "metric"]].dropna().empty:
        raise InvalidInput("the dose table has no rows; give evaluate's table of at least one mask")
    if not pd.api.types.is_numeric_dtype(table["neurons"]):
        raise InvalidInput(
            f"the dose table's column neurons holds {checks.shown(table['neurons'].iloc[0])}; give numbers of masked neurons"
        )


def draw_metric(ax: Axes, table: pd.DataFrame, along: str = "neurons") -> list[Line2D]:
    """A line per control through the means of prompts' means, in a band of its 95 % intervals, and levels. Returns those with points.

    `along` is the column of the horizontal axis.
    """
    before = len(ax.lines)
    keys = [name for name in ("control", along, "prompt") if name in table.columns]
    means = table.groupby(keys, sort=False)["score"].mean().reset_index() if "prompt" in keys else table
    interval = partial(_interval, exact=is_share(table["score"].to_numpy(dtype=float)))
    named = {str(name): part for name, part in means.groupby("control", sort=False)} if "control" in keys else {"": means}
    for name, level in _LEVELS.items():
        if name in named:
            _draw_level(ax, name, named.pop(name)["score"], interval, level)
    for (name, line), look in zip(named.items(), itertools.cycle(_LOOKS), strict=False):
        sns.lineplot(
            line,
            x=along,
            y="score",
            ax=ax,
            errorbar=interval,
            err_kws=_BAND,
            label=name,
            markeredgecolor=look["color"],
            legend=False,
            **look,
        )
    ax.set(xlabel="", ylabel="")
    return [line for line in ax.lines[before:] if len(np.asarray(line.get_xdata()))]


def _draw_level(ax: Axes, name: str, scores: pd.Series, interval: _Interval, look: Mapping[str, Any]) -> None:
    """A level line in the band of its interval."""
    low, high = interval(scores)
    if np.isfinite(low):
        ax.axhspan(low, high, color=look["color"], **_BAND)
    ax.axhline(float(scores.mean()), label=name, **look)


def _interval(scores: pd.Series, exact: bool) -> tuple[float, float]:
    """The 95 % interval of the mean of one dose's scores, one score per prompt."""
    return mean_interval(scores.dropna().to_numpy(), exact)


def _scale(ax: Axes, doses: pd.Series, unit: str) -> None:
    """Sets both axes: shares reach from 0 to 1, wide ranges of doses are logarithmic, and up to 8 doses have a tick each."""
    if unit == SHARE_OF_IMAGES:
        ax.set_ylim(-0.08, 1.08)
        ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    else:
        ax.locator_params(axis="y", nbins=_SCORES)
    known = sorted(set(doses.dropna()))
    if known[0] > 0 and known[-1] >= _LOGARITHMIC * known[0]:
        ax.set_xscale("log")
    if len(known) <= _TICKS:
        ax.set_xticks(known, [f"{dose:g}" for dose in known])
        ax.set_xticks([], minor=True)
    ax.grid(axis="y", color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)


def _name_below(ax: Axes, drawn: Mapping[Axes, Sequence[Line2D]]) -> None:
    """Names all lines once, in a legend under the axes."""
    lines = {str(line.get_label()): line for each in drawn.values() for line in each}
    handles = sorted(lines.values(), key=lambda line: line.get_label() in _LEVELS)
    height = float(figure_of(ax).get_size_inches()[1] * ax.get_position().height)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -_UNDER / height), "borderaxespad": 0.0}
    for text in ax.legend(handles=handles, frameon=False, fontsize=SMALL, ncols=2, handlelength=3, **place).get_texts():
        text.set_parse_math(False)


def _name_lines(drawn: Mapping[Axes, Sequence[Line2D]]) -> None:
    """Names several lines once: at their ends, in the panel where these are farthest apart, or in a legend if they are close everywhere."""
    panel = max(drawn, key=lambda panel: (len(drawn[panel]), _separation(panel, drawn[panel])))
    lines = drawn[panel]
    if len(lines) < 2:
        return
    if _separation(panel, lines) < _APART:
        for text in panel.legend(handles=lines, frameon=False, fontsize=SMALL).get_texts():
            text.set_parse_math(False)
        return
    middle = sum(panel.get_ylim()) / 2
    for line in lines:
        x, y = _end(line)
        side = 1 if y < middle else -1
        panel.annotate(
            str(line.get_label()),
            (x, y),
            xytext=(0, _BESIDE * side),
            textcoords="offset points",
            ha="right",
            va="bottom" if side > 0 else "top",
            color=line.get_color(),
            fontsize=SMALL,
            parse_math=False,
        )


def _separation(ax: Axes, lines: Sequence[Line2D]) -> float:
    """The smallest distance between the ends of two lines, as a share of the axis."""
    ends = sorted(_end(line)[1] for line in lines)
    low, high = ax.get_ylim()
    return min((after - before for before, after in itertools.pairwise(ends)), default=0.0) / (high - low)


def _end(line: Line2D) -> tuple[float, float]:
    """The last point of a line, in the axes' data."""
    x, y = np.asarray(line.get_xydata(), dtype=float)[-1]
    return float(x), float(y)
