"""The plot of neurons' scores."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Literal, get_args

import numpy as np
import seaborn as sns
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.errors import choose
from neuroscope.core.results.scores import Neurons, NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.interventions import NeuronMask
from neuroscope.report.plots._axes import COLUMN, DIVERGING, SEQUENTIAL, check_axes, figure_of, finish, method_name, new_axes, wrapped

View = Literal["map", "sorted", "top"]
VIEWS: tuple[str, ...] = get_args(View)
#: Up to so many sites are named each.
_NAMED = 40
#: Standard errors on either side of a score in a 95 % interval.
_Z = 1.96


def neurons(
    scores: NeuronScores, *, marked: Neurons | NeuronMask | None = None, view: View = "map", top: int = 20, ax: Axes | None = None
) -> Axes:
    """Every neuron's score as a heatmap, or the strongest ones by name.

    Lines part the blocks of the model. Models of more than 40 sites have blocks named on the left, others sites. Sites of different
    widths leave the right end of their rows empty. Scores with two sides are coloured around their neutral value, other scores from
    0; colours end at the 99.9 % quantile.

    Args:
        scores: what `ns.score` or `ns.rank` gives.
        marked: the neurons to outline, or a mask, whose neurons are outlined. Neurons of sites without scores are left out.
        view: "map" has one row per site, neurons in their own order. "sorted" has each row's neurons in the order of their strength
            (the distance from neutral) on a logarithmic axis, which stays readable for thousands of neurons. "top" has the `top`
            strongest neurons by name, with 95 % intervals where the scores have standard errors.
        top: how many neurons the view "top" shows; at most as many as there are.
        ax: where to draw; by default a new figure, 6.8 inches wide, or 3.4 for "top".

    Raises:
        InvalidInput: an argument is of another kind.
    """
    checks.instance("scores", scores, NeuronScores, "ns.score(recording, ns.Welch()); layers have ns.plots.layers(scores)")
    marked = marked.neurons if isinstance(marked, NeuronMask) else marked
    if marked is not None:
        checks.instance("marked", marked, Neurons, "scores.top(50)")
    choose("view", view, VIEWS)
    checks.whole("top", top)
    check_axes(ax)
    if view == "top":
        return _draw_top(scores, marked, min(top, scores.sites.neuron_count), ax)
    ax = ax or new_axes(COLUMN * 2, min(9.0 if view == "map" else 5.0, max(1.6, 0.6 + 0.16 * len(scores.sites))))
    (_draw_sorted if view == "sorted" else _draw_map)(scores, marked, ax)
    _part_blocks(ax, scores.sites)
    return finish(ax, f"{scores.provenance.concept}: neurons")


def _draw_map(scores: NeuronScores, marked: Neurons | None, ax: Axes) -> None:
    table = _by_site(scores)
    sns.heatmap(table, ax=ax, rasterized=True, xticklabels=False, yticklabels=False, cbar_kws=_bar(scores), **_colours(scores, table))
    ax.set_facecolor("0.93")
    if marked is not None:
        _outline(ax, scores, marked, _in_order(scores))
    ticks = np.linspace(0, table.shape[1], 5, dtype=int)
    ax.set_xticks(ticks, [str(tick) for tick in ticks], rotation=0)
    ax.set(xlabel="neuron")


def _draw_sorted(scores: NeuronScores, marked: Neurons | None, ax: Axes) -> None:
    order = {path: scores.strength(path).argsort(descending=True, stable=True) for path in scores.sites.paths}
    table = np.abs(_by_site(scores, order) - scores.neutral) if scores.two_sided else _by_site(scores, order)
    look: dict[str, Any] = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": np.nanquantile(table, 0.999) or 1}
    edges = np.arange(1, table.shape[1] + 2) - 0.5
    drawn = ax.pcolormesh(edges, np.arange(len(table) + 1), table, rasterized=True, **look)
    figure_of(ax).colorbar(drawn, ax=ax, **_bar(scores, "distance from neutral" if scores.two_sided else ""))
    ax.set_facecolor("0.93")
    ax.set(xscale="log", ylim=(len(table), 0), xlim=(edges[0], edges[-1]), xlabel="rank in its site, strongest first")
    ax.xaxis.set_major_formatter("{x:g}")
    sns.despine(ax=ax, left=True, bottom=True)
    if marked is not None:
        _outline(ax, scores, marked, {path: each.argsort() + 1.0 for path, each in order.items()}, "crimson")


def _draw_top(scores: NeuronScores, marked: Neurons | None, count: int, ax: Axes | None) -> Axes:
    found = [(site, index) for site in scores.sites for index in scores.top(count).get(site.path, ())]
    found.sort(key=lambda each: -float(scores.strength(each[0].path)[each[1]]))
    values = np.array([float(scores.scores[site.path][index]) for site, index in found])
    errors = np.array([float(scores.stderr[site.path][index]) if scores.stderr else 0.0 for site, index in found])
    rows = np.arange(count)
    ax = ax or new_axes(COLUMN, 0.8 + 0.15 * count)
    ax.hlines(rows, values - _Z * errors, values + _Z * errors, color="tab:blue", linewidth=1.0, alpha=0.6)
    ax.plot(values, rows, "o", color="tab:blue", markersize=3.2)
    inside = [row for row, (site, index) in enumerate(found) if marked is not None and index in marked.get(site.path, ())]
    ax.scatter(values[inside], rows[inside], s=34, facecolors="none", edgecolors="black", linewidths=0.6, label="marked")
    ax.axvline(scores.neutral, color="0.8", linewidth=0.7, zorder=0)
    ax.set_yticks(rows, [f"{site.label} {index} · {site.block}" for site, index in found], parse_math=False)
    measure = method_name(scores.provenance.method) + (", 95 % intervals" if scores.stderr else "")
    ax.set(ylim=(count - 0.4, -0.6), xlabel=wrapped(measure, 40))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    sns.despine(ax=ax)
    return finish(ax, wrapped(f"{scores.provenance.concept}: strongest neurons", 44))


def _bar(scores: NeuronScores, measure: str = "") -> dict[str, Any]:
    said = ", ".join(filter(None, (method_name(scores.provenance.method), measure)))
    return {"label": wrapped(said, 36), "pad": 0.01, "fraction": 0.04, "aspect": 30}


def _part_blocks(ax: Axes, sites: Sites) -> None:
    """Lines between blocks, and the names of sites, or of blocks where there are too many sites."""
    groups = [(block, list(rows)) for block, rows in groupby(range(len(sites)), key=lambda row: sites[row].block)]
    for _, rows in groups[1:]:
        ax.axhline(rows[0], color="0.25", linewidth=0.7)
    labels = [site.label for site in sites]
    if len(labels) > _NAMED and len(groups) > 1:
        ax.set_yticks([rows[0] + len(rows) / 2 for _, rows in groups], [_said(block, sites, rows) for block, rows in groups], rotation=0)
        ax.set(ylabel="block and layers")
    else:
        step = -(-len(labels) // _NAMED)
        ax.set_yticks(np.arange(0, len(labels), step) + 0.5, labels[::step], rotation=0)
        ax.set(ylabel="layer and role")


def _said(block: str, sites: Sites, rows: list[int]) -> str:
    """A block's name and its layers, such as "down.2: 4 to 23"."""
    layers = [layer for row in rows if (layer := sites[row].layer) is not None]
    return block if not layers else f"{block}: {layers[0]}" + (f" to {layers[-1]}" if layers[-1] != layers[0] else "")


def _in_order(scores: NeuronScores) -> dict[str, Tensor]:
    return {site.path: torch.arange(site.width) + 0.5 for site in scores.sites}


def _by_site(scores: NeuronScores, order: Mapping[str, Tensor] | None = None) -> Float[np.ndarray, "site neuron"]:
    """Scores as a matrix, by default in the neurons' own order; narrow sites end in NaN."""
    table = np.full((len(scores.sites), max(site.width for site in scores.sites)), np.nan)
    for row, site in enumerate(scores.sites):
        table[row, : site.width] = (scores.scores[site.path] if order is None else scores.scores[site.path][order[site.path]]).numpy()
    return table


def _colours(scores: NeuronScores, table: Float[np.ndarray, "site neuron"]) -> dict[str, Any]:
    """The colours of a heatmap of neurons, as arguments of seaborn."""
    if scores.two_sided:
        half = np.nanquantile(np.abs(table - scores.neutral), 0.999) or 1
        return {"cmap": DIVERGING, "norm": CenteredNorm(scores.neutral, half)}
    return {"cmap": SEQUENTIAL, "vmin": 0, "vmax": np.nanquantile(table, 0.999) or 1}


def _outline(ax: Axes, scores: NeuronScores, marked: Neurons, across_of: Mapping[str, Tensor], colour: str = "black") -> None:
    """Rings around the marked neurons, where `across_of` says that they stand in their row."""
    rows = {path: row for row, path in enumerate(scores.sites.paths)}
    points = [(float(across_of[path][index]), rows[path] + 0.5) for path, chosen in marked.items() if path in rows for index in chosen]
    if points:
        across, down = zip(*points, strict=True)
        ax.scatter(across, down, s=9, facecolors="none", edgecolors=colour, linewidths=0.6, label="marked")
