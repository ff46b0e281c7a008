"""Plots of layers' scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.statistics import is_share
from neuroscope.report.plots._axes import (
    COLUMN,
    check_axes,
    figure_of,
    finish,
    frame,
    heatmap,
    method_name,
    new_axes,
    panels,
    side_by_side,
    wrapped,
)

View = Literal["points", "heatmap"]
VIEWS: tuple[str, ...] = get_args(View)
#: Up to so many layers fit one column of a paper.
_NARROW = 24


def layers(
    scores: LayerScores | Mapping[str, LayerScores], *, marked: int | None = None, view: View = "points", ax: Axes | None = None
) -> Axes:
    """The scores of layers, with 95 % intervals where they were measured on images: one panel per method, each with its own unit.

    Components such as "resnet 3", from causal tracing, have one panel per kind, all on one scale.

    Args:
        scores: what `ns.localize` gives, or `scores.by_layer()` of neurons; of several methods, a mapping from the name of each.
        marked: the layer to mark; components have none.
        view: "points", or "heatmap" for one row per method (or kind) without intervals, each method scaled to its own largest
            absolute score; scores below 0 are white.
        ax: where to draw; by default a new figure, 3.4 inches wide, or 6.8 with more than 24 layers or as a heatmap.

    Returns:
        The axes. Of several panels they are the frame, and its `child_axes` are the panels.

    Raises:
        InvalidInput: no scores are given, or an argument is of another kind.
    """
    named = _named(scores)
    if marked is not None:
        checks.whole("marked", marked, least=0)
    choose("view", view, VIEWS)
    check_axes(ax)
    kinds = _by_kind(scores) if isinstance(scores, LayerScores) else None
    if view == "heatmap":
        return _draw_heatmap(named, kinds, marked, ax)
    series = _series(named, kinds)
    units = [_unit(each) for each in named.values()] if kinds is None else [_unit(next(iter(named.values())))] * len(series)
    return _draw_points(series, units, marked if kinds is None else None, ax, one_scale=kinds is not None)


def _draw_heatmap(named: Mapping[str, LayerScores], kinds: pd.DataFrame | None, marked: int | None, ax: Axes | None) -> Axes:
    """One row per method, or per kind of component."""
    table = pd.DataFrame({name: pd.Series(each.scores, index=list(each.layers)) for name, each in named.items()}).T
    scaled = table.div(table.abs().max(axis=1).replace(0, 1), axis=0) if kinds is None else kinds / (float(np.nanmax(np.abs(kinds))) or 1)
    ax = ax or new_axes(COLUMN * 2, 0.9 + 0.36 * len(scaled))
    heatmap(ax, scaled, "share of its largest" if kinds is None else "share of the largest", 1)
    if marked is not None and kinds is None and marked in table.columns:
        left = list(table.columns).index(cast("Any", marked))
        ax.add_patch(Rectangle((left, 0), 1, len(named), fill=False, edgecolor="crimson", linewidth=1.5, clip_on=False))
    ax.set(xlabel=_across(kinds is not None), ylabel="")
    return finish(ax, "layers")


def _series(named: Mapping[str, LayerScores], kinds: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """By name: layer, score, and the ends of its interval (NaN where there is none)."""
    if kinds is None:
        return {name: _points(scores).sort_values("layer") for name, scores in named.items()}
    (scores,) = named.values()
    found = _points(scores)
    parts = [name.rpartition(" ") for name in scores.names]
    found["layer"] = [int(number) for *_, number in parts]
    kind = pd.Series([kind for kind, *_ in parts])
    return {str(name): found[kind == name] for name in kinds.index}


def _points(scores: LayerScores) -> pd.DataFrame:
    found = pd.DataFrame({"layer": scores.layers, "score": scores.scores, "low": np.nan, "high": np.nan})
    if scores.effects:
        found[["low", "high"]] = scores.effects.layer_intervals(scores.layers)
    return found


def _titled(name: str, unit: str, ax: Axes, count: int) -> str:
    """The title of one of `count` panels: its name, cut where there is no room, and its unit, on a line of its own where it must be."""
    inches = float(figure_of(ax).get_size_inches()[0] * ax.get_position().width) / (count if side_by_side(ax) else 1)
    unit = "" if count == 1 or unit == name else f" ({unit})"
    room = int(17 * inches)
    if len(name) + len(unit) > room:
        return f"{wrapped(name, room, 1)}\n{unit.strip()}"
    return f"{name}{unit}"


def _unit(scores: LayerScores) -> str:
    """What scores are measured in: of effects on images a share or the metric's unit, else the method's own measure."""
    if scores.effects is None:
        return method_name(scores.provenance.method) or "score"
    if scores.effects.relative:
        return "share of the total effect"
    known = scores.effects.values[~scores.effects.values.isnan()].abs().numpy()
    return "share of images" if is_share(known) else "effect in the metric's unit"


def _draw_points(series: Mapping[str, pd.DataFrame], units: list[str], marked: int | None, ax: Axes | None, *, one_scale: bool) -> Axes:
    """One panel per title: points, with bars for intervals, over a line at 0."""
    longest = max(map(len, series.values()))
    ax = ax or new_axes(COLUMN * (1 + (longest > _NARROW)), 1.9 if len(series) == 1 else 0.7 + 1.05 * len(series))
    titles = [_titled(name, unit, ax, len(series)) for name, unit in zip(series, units, strict=True)]
    drawn = panels(ax, titles)
    every = pd.concat(series.values())
    for panel, points in zip(drawn, series.values(), strict=True):
        _draw_series(panel, points, marked)
        panel.set_xlim(every["layer"].min() - 0.6, every["layer"].max() + 0.6)
        if one_scale:
            low, high = every[["score", "low"]].min().min(), every[["score", "high"]].max().max()
            panel.set_ylim(min(0, low) - 0.08 * (high - min(0, low) or 1), high + 0.08 * (high - min(0, low) or 1))
    if len(drawn) > 1:
        frame(ax, drawn)
    sns.despine(ax=ax, left=len(drawn) > 1, bottom=len(drawn) > 1)
    ax.set(xlabel=_across(one_scale), ylabel=wrapped(units[0], 26) if len(drawn) == 1 else "")
    title = titles[0] if len(drawn) == 1 else "components" if one_scale else "layers"
    return finish(ax, f"{title}, 95 % intervals" if every["low"].notna().any() else title)


def _draw_series(panel: Axes, points: pd.DataFrame, marked: int | None) -> None:
    if marked is not None and marked in set(points["layer"]):
        panel.axvspan(marked - 0.5, marked + 0.5, color="crimson", alpha=0.15, linewidth=0)
    panel.axhline(0, color="0.8", linewidth=0.7, zorder=0)
    panel.vlines(points["layer"], points["low"], points["high"], color="tab:blue", linewidth=1.0, alpha=0.6)
    panel.plot(points["layer"], points["score"], "o", color="tab:blue", markersize=3.2 if len(points) <= _NARROW else 2.2)
    panel.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    panel.yaxis.set_major_locator(MaxNLocator(4))


def _across(components: bool) -> str:
    return "number among its kind, in execution order" if components else "cross-attention layer"


def grid(scores: LayerScores, *, ax: Axes | None = None) -> Axes:
    """A heatmap of effects: one row per part of the schedule (or kind of token), one column per layer. Effects below 0 are white.

    Args:
        scores: what `ns.localize` gives.
        ax: where to draw; by default a new figure, 6.8 inches wide.

    Raises:
        InvalidInput: the scores were not measured on generated images, or an argument is of another kind.
    """
    checks.instance("scores", scores, LayerScores, "what ns.localize gives")
    check_axes(ax)
    table = scores.grid().T
    ax = ax or new_axes(COLUMN * 2, 0.9 + 0.3 * len(table))
    widest = float(np.nanmax(np.abs(table.to_numpy()))) or 1.0
    heatmap(ax, table, "share of the total effect" if scores.effects and scores.effects.relative else "effect", widest)
    ax.set(xlabel="layer", ylabel="")
    return finish(ax, f"{scores.provenance.concept}: layers by part")


def _named(scores: Any) -> dict[str, LayerScores]:
    """The scores of layers by name; scores alone are named after their method."""
    if not isinstance(scores, Mapping):
        checks.instance("scores", scores, LayerScores, "what ns.localize gives, or scores.by_layer() of neurons")
        return {method_name(scores.provenance.method): scores}
    for each in scores.values():
        checks.instance("one of the scores", each, LayerScores, "what ns.localize gives, or scores.by_layer() of neurons")
    if not scores:
        raise InvalidInput("there are no layer scores to plot; give at least one")
    return dict(scores)


def _by_kind(scores: LayerScores) -> pd.DataFrame | None:
    """Scores of components named by kind and number: one row per kind, one column per number. None for other names."""
    parts = [name.rpartition(" ") for name in scores.names]
    if not parts or not all(kind and number.isdecimal() for kind, _, number in parts):
        return None
    cells = [(kind, int(number), score) for (kind, _, number), score in zip(parts, scores.scores, strict=True)]
    table = pd.DataFrame(cells, columns=["kind", "number", "score"])
    return table.pivot_table(index="kind", columns="number", values="score", sort=False).sort_index(axis="columns")
