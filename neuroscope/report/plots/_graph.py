"""The plot of a model's sites."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from neuroscope.core import checks
from neuroscope.core.sites import BESIDE_LAYERS, Sites
from neuroscope.pipeline.graph import HookGraph
from neuroscope.report.plots._axes import COLUMN, SMALL, check_axes, figure_of, finish, new_axes

_ROLES = ("key", "value", "query", "heads", "output", "feedforward")
#: Up to so many layers are drawn one beside the other.
_DRAWN = 24
#: Where a close-up has the boxes, in its own units, 10.8 wide.
_BOXES = {
    "prompt": (0.0, 2.7),
    "image": (0.0, 0.9),
    "key": (2.3, 3.15),
    "value": (2.3, 2.1),
    "query": (2.3, 0.9),
    "heads": (4.7, 2.1),
    "output": (6.8, 2.1),
    "feedforward": (9.0, 2.1),
    "pooled": (6.8, 3.2),
    "context": (9.0, 3.2),
}
#: Both ends of the strip of blocks.
_STRIP = (-0.6, 9.6)
#: The width of a letter in inches.
_LETTER = 0.045


def graph(graph: HookGraph, *, layer: int | None = None, ax: Axes | None = None) -> Axes:
    """The sites of a model and the flow of data between them, or one layer in close-up above a strip of all blocks.

    Without `layer` there is one column per layer in execution order and one row per role; a marker's area grows with its site's width.
    The close-up names each site and its width, and the strip has one segment per block, as long as it has layers. Blue sites and
    lines depend on the prompt alone.

    Args:
        graph: the model.
        layer: the layer in close-up. By default all layers are drawn, or the first one in close-up where there are more than 24.
        ax: where to draw; by default a new figure, at least 3.4 inches wide, or 6.8 for a close-up.

    Raises:
        InvalidInput: there is no such layer, or an argument is of another kind.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    check_axes(ax)
    if layer is not None:
        graph.sites.where(layer=layer)
    elif len(graph.sites.layers) > _DRAWN:
        layer = graph.sites.layers[0]
    if layer is not None:
        return close_up(graph.sites, layer, graph.model, ax or new_axes(COLUMN * 2, 2.6))
    beside = graph.sites.where(role=BESIDE_LAYERS)
    above = {site.role: 1 + number for number, site in enumerate(beside)}
    ax = ax or new_axes(max(COLUMN, 0.42 * len(graph.sites.layers) + 1), 2.6)
    _draw_flow(ax, graph, {site.path: (-1, above[site.role]) for site in beside})
    rows = {role: -number for number, role in enumerate(_ROLES)} | above
    ax.set_yticks(list(rows.values()), list(rows))
    ax.set_xticks(graph.sites.layers)
    ax.set(xlabel="cross-attention layer, in execution order", xlim=(-3.4, max(graph.sites.layers) + 0.7))
    sns.despine(ax=ax, left=True)
    ax.tick_params(axis="y", length=0)
    return finish(ax, f"{graph.model}: blue reads the prompt alone")


def close_up(sites: Sites, layer: int, model: str, ax: Axes) -> Axes:
    """One layer's sites as boxes with arrows, above a strip of all blocks."""
    mine = {site.path: site for site in sites.where(layer=layer)}
    text = {target for source, target in sites.edges if source == "prompt"}
    unit = " neurons" if _inches(ax) > COLUMN * 1.5 else ""
    boxes = {path: _box(ax, _BOXES[site.role], f"{site.role}\n{site.width:,}{unit}", site.text_only) for path, site in mine.items()}
    boxes["prompt"] = _box(ax, _BOXES["prompt"], "prompt", True)
    boxes["image"] = _box(ax, _BOXES["image"], "image" if layer == sites.layers[0] else "layer\nbefore", False)
    for source, target in sites.edges:
        if target in mine:
            _arrow(ax, boxes.get(source, boxes["image"]), boxes[target], "tab:blue" if source == "prompt" or source in text else "0.5")
    for site in sites.where(role=BESIDE_LAYERS):
        _box(ax, _BOXES[site.role], f"{site.role}, to all layers\n{site.width:,}{unit}", site.text_only)
    _draw_strip(ax, sites, layer)
    ax.set(xlim=(-0.9, 9.9), ylim=(-1.25, 3.6), xticks=[], yticks=[])
    sns.despine(ax=ax, left=True, bottom=True)
    return finish(ax, f"{model}, layer {layer}: blue reads the prompt alone")


def _inches(ax: Axes) -> float:
    """The width of the axes."""
    return float(figure_of(ax).get_size_inches()[0] * ax.get_position().width)


def _box(ax: Axes, place: tuple[float, float], text: str, text_only: bool) -> Text:
    colour = "tab:blue" if text_only else "0.35"
    bbox = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colour, "linewidth": 0.9}
    return ax.text(*place, text, ha="center", va="center", fontsize=SMALL, bbox=bbox, zorder=3)


def _arrow(ax: Axes, start: Text, end: Text, colour: str) -> None:
    """An arrow between the edges of two boxes."""
    ends: dict[str, Any] = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch(), "shrinkA": 1, "shrinkB": 1}
    look = {"arrowstyle": "-|>,head_length=0.3,head_width=0.15", "color": colour, "linewidth": 0.9} | ends
    ax.annotate("", end.get_position(), start.get_position(), arrowprops=look, zorder=1)


def _draw_strip(ax: Axes, sites: Sites, layer: int) -> None:
    """One segment per block along the bottom, with a mark at the layer."""
    blocks = {site.layer: site.block for site in sites if site.layer is not None}
    groups = [(block, len(list(run))) for block, run in groupby(blocks.values())]
    step, left = (_STRIP[1] - _STRIP[0]) / len(blocks), _STRIP[0]
    inches = _inches(ax) / 10.8
    for number, (block, count) in enumerate(groups):
        ax.add_patch(Rectangle((left, -0.55), count * step, 0.45, facecolor=("0.88", "0.78")[number % 2], edgecolor="white"))
        if count * step * inches > _LETTER * len(block):
            ax.text(left + count * step / 2, -0.325, block, ha="center", va="center", fontsize=SMALL, parse_math=False)
        left += count * step
    at = _STRIP[0] + (list(blocks).index(layer) + 0.5) * step
    ax.add_patch(Rectangle((at - step / 2, -0.6), step, 0.55, fill=False, edgecolor="crimson", linewidth=1.2, zorder=4))
    ax.text(at, -0.7, f"layer {layer}", ha="center", va="top", fontsize=SMALL, color="crimson")


def _draw_flow(ax: Axes, graph: HookGraph, beside: Mapping[str, tuple[float, float]]) -> None:
    """The sites as markers and the edges as lines; "prompt" and "image" stand on the left, and sites of no layer where they are told."""
    place = dict(beside)
    place |= {site.path: (site.layer, -_ROLES.index(site.role)) for site in graph.sites if site.layer is not None}
    place |= {"prompt": (-1.6, -0.5), "image": (-1.6, -2)}
    text = {path for source, path in graph.edges if source == "prompt"}
    for source, target in graph.edges:
        (x, y), (u, v) = place[source], place[target]
        colour = "tab:blue" if target in text or source in text else "0.6"
        ax.plot([x, u], [y, v], color=colour, linewidth=0.5, alpha=0.35 if source == "prompt" else 0.8, zorder=1)
    widest = max(site.width for site in graph.sites)
    for site in graph.sites:
        size = 12 + 60 * site.width / widest
        ax.scatter(*place[site.path], s=size, color="tab:blue" if site.text_only else "0.35", edgecolors="white", linewidths=0.5, zorder=2)
    for name in ("prompt", "image"):
        ax.annotate(name, place[name], ha="right", va="center", fontsize=SMALL)
