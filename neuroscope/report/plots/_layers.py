"""Plots of layers' scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.report.plots._axes import COLUMN, check_axes, finish, heatmap, method_name, new_axes


def layers(scores: LayerScores | Mapping[str, LayerScores], *, marked: int | None = None, ax: Axes | None = None) -> Axes:
    """A heatmap of layers: one row per method, each scaled to its own largest absolute score. Scores below 0 are white.

    Scores of components such as "resnet 3", from causal tracing, have one row per kind, all on one scale.

    Args:
        scores: what `ns.localize` gives, or `scores.by_layer()` of neurons; of several methods, a mapping from the name of each.
        marked: the layer to outline; components have none.
        ax: where to draw; by default a new figure, 6.8 inches wide.

    Raises:
        InvalidInput: no scores are given, or an argument is of another kind.
    """
    named = _named(scores)
    if marked is not None:
        checks.whole("marked", marked, least=0)
    check_axes(ax)
    kinds = _by_kind(scores) if isinstance(scores, LayerScores) else None
    table = pd.DataFrame({name: pd.Series(each.scores, index=list(each.layers)) for name, each in named.items()}).T
    scaled = table.div(table.abs().max(axis=1).replace(0, 1), axis=0) if kinds is None else kinds / (float(np.nanmax(np.abs(kinds))) or 1)
    ax = ax or new_axes(COLUMN * 2, 0.9 + 0.36 * len(scaled))
    heatmap(ax, scaled, "share of its largest" if kinds is None else "share of the largest", 1)
    if marked is not None and kinds is None and marked in table.columns:
        left = list(table.columns).index(cast("Any", marked))
        ax.add_patch(Rectangle((left, 0), 1, len(named), fill=False, edgecolor="crimson", linewidth=1.5, clip_on=False))
    ax.set(xlabel="cross-attention layer" if kinds is None else "number among its kind, in execution order", ylabel="")
    return finish(ax, "layers")


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
