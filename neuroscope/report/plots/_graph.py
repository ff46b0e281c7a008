"""The plot of a model's sites."""

from __future__ import annotations

from collections.abc import Sequence

import seaborn as sns
from matplotlib.axes import Axes

from neuroscope.core import checks
from neuroscope.pipeline.graph import HookGraph
from neuroscope.report.plots._axes import COLUMN, SMALL, check_axes, finish, new_axes

_ROLES = ("key", "value", "query", "heads", "output", "feedforward")


def graph(graph: HookGraph, *, ax: Axes | None = None) -> Axes:
    """The sites of a model and the flow of data between them: one column per layer in execution order, one row per role.

    A marker's area grows with its site's width. Blue sites and lines depend on the prompt alone.

    Args:
        graph: the model.
        ax: where to draw; by default a new figure, at least 3.4 inches wide.

    Raises:
        InvalidInput: an argument is of another kind.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    check_axes(ax)
    pooled = graph.sites.where(role="pooled")
    ax = ax or new_axes(max(COLUMN, 0.42 * len(graph.sites.layers) + 1), 2.6)
    _draw_flow(ax, graph, pooled.paths)
    rows = {role: -number for number, role in enumerate(_ROLES)} | ({"pooled": 1} if pooled else {})
    ax.set_yticks(list(rows.values()), list(rows))
    ax.set_xticks(graph.sites.layers)
    ax.set(xlabel="cross-attention layer, in execution order", xlim=(-3.4, max(graph.sites.layers) + 0.7))
    sns.despine(ax=ax, left=True)
    ax.tick_params(axis="y", length=0)
    return finish(ax, f"{graph.model}: blue reads the prompt alone")


def _draw_flow(ax: Axes, graph: HookGraph, pooled: Sequence[str]) -> None:
    """The sites as markers and the edges as lines; "prompt" and "image" stand on the left."""
    place: dict[str, tuple[float, float]] = dict.fromkeys(pooled, (-1, 1))
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
