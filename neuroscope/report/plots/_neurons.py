"""The plot of neurons' scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm

from neuroscope.core import checks
from neuroscope.core.scores import Neurons, NeuronScores
from neuroscope.interventions import NeuronMask
from neuroscope.report.plots._axes import COLUMN, DIVERGING, SEQUENTIAL, check_axes, finish, method_name, new_axes, wrapped


def neurons(scores: NeuronScores, *, marked: Neurons | NeuronMask | None = None, ax: Axes | None = None) -> Axes:
    """A heatmap of every neuron's score: one row per site, neurons in their own order.

    Sites of different widths leave the right end of their rows empty. Scores with two sides are coloured around their neutral value,
    other scores from 0; colours end at the 99.9 % quantile.

    Args:
        scores: what `ns.score` gives.
        marked: the neurons to outline, or a mask, whose neurons are outlined. Neurons of sites without scores are left out.
        ax: where to draw; by default a new figure, 6.8 inches wide.

    Raises:
        InvalidInput: an argument is of another kind.
    """
    checks.instance("scores", scores, NeuronScores, "ns.score(recording, ns.Welch()); layers have ns.plots.layers(scores)")
    marked = marked.neurons if isinstance(marked, NeuronMask) else marked
    if marked is not None:
        checks.instance("marked", marked, Neurons, "scores.top(50)")
    check_axes(ax)
    table = _by_site(scores)
    ax = ax or new_axes(COLUMN * 2, min(9.0, max(1.6, 0.6 + 0.16 * len(table))))
    bar = {"label": wrapped(method_name(scores.provenance.method), 24), "pad": 0.01, "fraction": 0.04, "aspect": 30}
    sns.heatmap(table, ax=ax, rasterized=True, xticklabels=False, yticklabels=False, cbar_kws=bar, **_colours(scores, table))
    ax.set_facecolor("0.93")
    if marked is not None:
        _outline(ax, scores, marked)
    labels = [site.label for site in scores.sites]
    step = -(-len(labels) // 40)
    ax.set_yticks(np.arange(0, len(labels), step) + 0.5, labels[::step], rotation=0)
    ticks = np.linspace(0, table.shape[1], 5, dtype=int)
    ax.set_xticks(ticks, [str(tick) for tick in ticks], rotation=0)
    ax.set(xlabel="neuron", ylabel="layer and role")
    return finish(ax, f"{scores.provenance.concept}: neurons")


def _by_site(scores: NeuronScores) -> Float[np.ndarray, "site neuron"]:
    """Scores as a matrix; narrow sites end in NaN."""
    table = np.full((len(scores.sites), max(site.width for site in scores.sites)), np.nan)
    for row, site in enumerate(scores.sites):
        table[row, : site.width] = scores.scores[site.path].numpy()
    return table


def _colours(scores: NeuronScores, table: Float[np.ndarray, "site neuron"]) -> dict[str, Any]:
    """The colours of a heatmap of neurons, as arguments of seaborn."""
    if scores.two_sided:
        half = np.nanquantile(np.abs(table - scores.neutral), 0.999) or 1
        return {"cmap": DIVERGING, "norm": CenteredNorm(scores.neutral, half)}
    return {"cmap": SEQUENTIAL, "vmin": 0, "vmax": np.nanquantile(table, 0.999) or 1}


def _outline(ax: Axes, scores: NeuronScores, marked: Neurons) -> None:
    rows = {path: row for row, path in enumerate(scores.sites.paths)}
    points = [(index + 0.5, rows[path] + 0.5) for path, chosen in marked.items() if path in rows for index in chosen]
    if points:
        across, down = zip(*points, strict=True)
        ax.scatter(across, down, s=9, facecolors="none", edgecolors="black", linewidths=0.6, label="marked")
