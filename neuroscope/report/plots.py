"""Plots of neurons, layers, images, doses and the hook graph.

Each plot draws into `ax`, or into a new figure as wide as one or two columns of a paper, and returns the axes. No global setting of
matplotlib is changed. `write` saves the figure and closes it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.patches import Rectangle
from PIL.Image import Image as PILImage

from neuroscope.core import checks
from neuroscope.core.errors import InvalidFile, InvalidInput, choose
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.scores import Neurons, NeuronScores
from neuroscope.core.storage import write_beside
from neuroscope.interventions import NeuronMask
from neuroscope.pipeline.graph import HookGraph
from neuroscope.report._axes import (
    COLUMN,
    CONTEXTS,
    DIVERGING,
    SAVED_DPI,
    SEQUENTIAL,
    SMALL,
    Context,
    check_axes,
    enlarge,
    figure_of,
    finish,
    heatmap,
    new_axes,
    wrapped,
)
from neuroscope.report._concepts import concepts, prompts
from neuroscope.report._dose import dose
from neuroscope.report._volcano import volcano
from neuroscope.report._where import where

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "concepts", "dose", "graph", "grid", "images", "layers", "neurons", "prompts", "volcano", "where", "write"]

#: The suffixes of files that a figure can be written to.
FORMATS = (".png", ".pdf", ".svg")
_ROLES = ("key", "value", "query", "heads", "output", "feedforward")


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
    bar = {"label": wrapped(_method(scores.provenance.method), 24), "pad": 0.01, "fraction": 0.04, "aspect": 30}
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


def images(rows: Mapping[str, Sequence[Image]], columns: Sequence[str] = (), *, ax: Axes | None = None) -> Axes:
    """A labelled grid of images: one row per condition, one column per prompt and seed.

    Args:
        rows: the images of each condition, such as `{"before": images}`; all of one size, and as many in each row.
        columns: the columns' labels, such as prompts; by default none.
        ax: where to draw; by default a new figure, 0.95 inches per image.

    Raises:
        InvalidInput: there is no image, rows have different lengths, images have different sizes, or an argument is of another kind.
    """
    check_axes(ax)
    columns = checks.strings("columns", columns)
    rows = {name: _row(name, row) for name, row in checks.instance("rows", rows, Mapping, '{"before": images}').items()}
    count, (width, height) = _check_rows(rows)
    gap = max(2, width // 16)
    ax = ax or new_axes(1.2 + 0.95 * count, 0.5 + 0.95 * len(rows) * height / width)
    ax.imshow(_canvas(rows, gap), interpolation="nearest")
    ax.set_yticks([row * (height + gap) + height / 2 for row in range(len(rows))], list(rows), parse_math=False)
    centres = [column * (width + gap) + width / 2 for column in range(len(columns))]
    ax.set_xticks(centres, [wrapped(name) for name in columns], parse_math=False)
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    return finish(ax, "")


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


def _named(scores: Any) -> dict[str, LayerScores]:
    """The scores of layers by name; scores alone are named after their method."""
    if not isinstance(scores, Mapping):
        checks.instance("scores", scores, LayerScores, "what ns.localize gives, or scores.by_layer() of neurons")
        return {_method(scores.provenance.method): scores}
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


def _method(name: str) -> str:
    return name.removesuffix("()").replace("()", "")


def _row(name: Any, row: Any) -> tuple[Any, ...]:
    """A row of the image grid; one image alone is a row of one."""
    checks.text("the name of a row", name, 'such as {"before": images}')
    if isinstance(row, PILImage):
        return (row,)
    if isinstance(row, str) or not isinstance(row, Iterable):
        raise InvalidInput(f"the images of {name!r} are {checks.shown(row)}, not a list of images; give what ns.generate gives")
    return tuple(row)


def _check_rows(rows: Mapping[str, Sequence[Image]]) -> tuple[int, tuple[int, int]]:
    """The number of columns of the image grid, and the width and height of its images in pixels."""
    counts = {len(row) for row in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise InvalidInput(f"the image grid needs rows of equal, non-zero length, not {sorted(counts)}")
    for name, each in rows.items():
        checks.several(f"the images of {name!r}", each, PILImage, "what ns.generate gives")
    sizes = {image.size for row in rows.values() for image in row}
    if len(sizes) > 1:
        raise InvalidInput(f"the image grid needs images of one size, not {sorted(sizes)}")
    return counts.pop(), sizes.pop()


def _canvas(rows: Mapping[str, Sequence[Image]], gap: int) -> UInt8[np.ndarray, "height width rgb"]:
    """All images of the grid on white, `gap` pixels apart."""
    first = next(iter(rows.values()))
    (width, height), count = first[0].size, len(first)
    canvas = np.full((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, row in enumerate(rows.values()):
        for column, image in enumerate(row):
            top, left = number * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = np.asarray(image.convert("RGB"))
    return canvas


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
