"""The plot of a change's strength: scores against how strongly a mask or an edit is applied."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.evaluation._response import SHARE_OF_IMAGES
from neuroscope.report.plots._axes import COLUMN, check_axes, finish, frame, new_axes, panels
from neuroscope.report.plots._dose import draw_metric, units_of


def strengths(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Scores against the strength of a mask or an edit, with 95 % intervals over prompts: one panel per metric, each with its own unit.

    The images themselves stand in a row by `ns.plots.images({"mask": images}, ["0", "0.5", "1"])`.

    Args:
        table: evaluations of one change at several strengths: the columns of `ns.evaluate`, and `strength`. Without this column the
            names of the interventions are the strengths, such as "0.5", and "none" is 0.
        ax: where to draw; by default a new figure, 3.4 inches wide.

    Returns:
        The axes. Of several metrics they are the frame, and its `child_axes` are the panels.

    Raises:
        InvalidInput: the table lacks a column or has no rows, a strength or a score is not a finite number, or an argument is of
            another kind.
    """
    table = _with_strength(table)
    check_axes(ax)
    by_metric = {str(metric): part for metric, part in table.groupby("metric", sort=False)}
    units = units_of(table, by_metric)
    titles = [f"{metric} ({unit})" for metric, unit in units.items()]
    ax = ax or new_axes(COLUMN, 2.2 if len(by_metric) == 1 else 0.7 + 1.1 * len(by_metric))
    drawn = panels(ax, titles)
    for panel, (metric, part) in zip(drawn, by_metric.items(), strict=True):
        draw_metric(panel, part, "strength")
        if units[metric] == SHARE_OF_IMAGES:
            panel.set_ylim(-0.08, 1.08)
            panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        else:
            panel.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
        panel.axvline(0, color="0.8", linewidth=0.7, zorder=0)
        sns.despine(ax=panel)
    if len(drawn) > 1:
        frame(ax, drawn)
    ax.set(xlabel="strength (0: no change, 1: the whole change)", ylabel="")
    return finish(ax, f"{titles[0]}, 95 % interval" if len(drawn) == 1 else "strength, 95 % intervals")


def _with_strength(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its strengths as numbers."""
    checks.instance("table", table, pd.DataFrame, "what ns.evaluate gives, with a column `strength`")
    if not {"strength", "intervention"} & set(table.columns):
        raise InvalidInput("the table lacks the column strength; add how strong the change was, such as table.assign(strength=0.5)")
    if missing := {"metric", "score"} - set(table.columns):
        raise InvalidInput(f"the table lacks the columns {', '.join(sorted(missing))}; give what ns.evaluate gives")
    if table.empty:
        raise InvalidInput("the table has no rows; give evaluations at one strength or more")
    given = table["strength"] if "strength" in table.columns else table["intervention"].replace("none", "0")
    for what, values in (("strength", given), ("score", table["score"])):
        numbers = pd.to_numeric(values, errors="coerce")
        if (wrong := ~numbers.between(-1e300, 1e300)).any():
            raise InvalidInput(f"{what}={checks.shown(values[wrong].tolist()[0])} is no finite number; give numbers such as 0.5")
    return pd.DataFrame(table).assign(strength=pd.to_numeric(given))
