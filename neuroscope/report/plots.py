"""Plots: `ax=None` in, `Axes` out. No global setting is touched; text stays readable at a paper column's width."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL.Image import Image as PILImage

from neuroscope.core import checks
from neuroscope.core.errors import InvalidFile, InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.scores import Neurons, NeuronScores
from neuroscope.core.statistics import is_share, mean_interval
from neuroscope.core.storage import write_beside
from neuroscope.interventions import NeuronMask
from neuroscope.pipeline.graph import HookGraph

if TYPE_CHECKING:
    from PIL.Image import Image

#: The suffixes of files that a figure can be written to.
FORMATS = (".png", ".pdf", ".svg")

_COLUMN = 3.4
_SMALL, _NORMAL = 6.5, 8.0
_DIVERGING, _SEQUENTIAL = "vlag", "Blues"


def neurons(scores: NeuronScores, *, marked: Neurons | NeuronMask | None = None, ax: Axes | None = None) -> Axes:
    """A heatmap of every neuron's score: one row a site, strongest neurons in their own order, `marked` ones (or a mask's) outlined.

    Sites of different widths leave the right end of their rows empty.
    """
    checks.instance("scores", scores, NeuronScores, "ns.score(recording, ns.Welch()); layers have ns.plots.layers(scores)")
    marked = marked.neurons if isinstance(marked, NeuronMask) else marked
    if marked is not None:
        checks.instance("marked", marked, Neurons, "scores.top(50)")
    _check_axes(ax)
    widest = max(site.width for site in scores.sites)
    grid = np.full((len(scores.sites), widest), np.nan)
    for row, site in enumerate(scores.sites):
        grid[row, : site.width] = scores.scores[site.path].numpy()
    ax = ax or _axes(_COLUMN * 2, min(9.0, max(1.6, 0.6 + 0.16 * len(scores.sites))))
    if scores.two_sided:
        look: dict[str, Any] = {
            "cmap": _DIVERGING,
            "norm": CenteredNorm(scores.neutral, np.nanquantile(np.abs(grid - scores.neutral), 0.999) or 1),
        }
    else:
        look = {"cmap": _SEQUENTIAL, "vmin": 0, "vmax": np.nanquantile(grid, 0.999) or 1}
    bar = {"label": _wrapped(_method(scores.provenance.method), 24), "pad": 0.01, "fraction": 0.04, "aspect": 30}
    sns.heatmap(grid, ax=ax, rasterized=True, xticklabels=False, yticklabels=False, cbar_kws=bar, **look)
    ax.set_facecolor("0.93")
    if marked is not None:
        _mark(ax, scores, marked)
    labels = [site.label for site in scores.sites]
    step = -(-len(labels) // 40)
    ax.set_yticks(np.arange(0, len(labels), step) + 0.5, labels[::step], rotation=0)
    ticks = np.linspace(0, widest, 5, dtype=int)
    ax.set_xticks(ticks, [str(tick) for tick in ticks], rotation=0)
    ax.set(xlabel="neuron", ylabel="layer and role")
    return _finish(ax, f"{scores.provenance.concept}: neurons")


def layers(scores: LayerScores | Mapping[str, LayerScores], *, marked: int | None = None, ax: Axes | None = None) -> Axes:
    """A heatmap of layers: one row a method, each scaled to its own largest score; `marked` outlines a layer.

    Components such as "resnet 3", which causal tracing scores, have one row a kind, all on one scale.

    Raises:
        InvalidInput: no scores are given.
    """
    if isinstance(scores, LayerScores | Mapping):
        for each in scores.values() if isinstance(scores, Mapping) else ():
            checks.instance("one of the scores", each, LayerScores, "what ns.localize gives, or scores.by_layer() of neurons")
    else:
        checks.instance("scores", scores, LayerScores, "what ns.localize gives, or scores.by_layer() of neurons")
    if marked is not None:
        checks.whole("marked", marked, least=0)
    _check_axes(ax)
    kinds = _by_kind(scores) if isinstance(scores, LayerScores) else None
    named = {_method(scores.provenance.method): scores} if isinstance(scores, LayerScores) else dict(scores)
    if not named:
        raise InvalidInput("there are no layer scores to plot; give at least one")
    table = pd.DataFrame({name: pd.Series(each.scores, index=list(each.layers)) for name, each in named.items()}).T
    scaled = table.div(table.abs().max(axis=1).replace(0, 1), axis=0) if kinds is None else kinds / (float(np.nanmax(np.abs(kinds))) or 1)
    ax = ax or _axes(_COLUMN * 2, 0.9 + 0.36 * len(scaled))
    _heatmap(ax, scaled, "share of its largest" if kinds is None else "share of the largest", 1)
    if marked is not None and kinds is None and marked in table.columns:
        left = list(table.columns).index(cast("Any", marked))
        ax.add_patch(Rectangle((left, 0), 1, len(named), fill=False, edgecolor="crimson", linewidth=1.5, clip_on=False))
    ax.set(xlabel="cross-attention layer" if kinds is None else "number among its kind, in execution order", ylabel="")
    return _finish(ax, "layers")


def grid(scores: LayerScores, *, ax: Axes | None = None) -> Axes:
    """A heatmap of effects: one row a part of the schedule (or a kind of token), one column a layer.

    Raises:
        InvalidInput: the scores were not measured on generated images.
    """
    checks.instance("scores", scores, LayerScores, "what ns.localize gives")
    _check_axes(ax)
    table = scores.grid().T
    ax = ax or _axes(_COLUMN * 2, 0.9 + 0.3 * len(table))
    widest = float(np.nanmax(np.abs(table.to_numpy()))) or 1.0
    _heatmap(ax, table, "share of the full effect" if scores.effects and scores.effects.relative else "effect", widest)
    ax.set(xlabel="layer", ylabel="")
    return _finish(ax, f"{scores.provenance.concept}: layers by part")


def images(rows: Mapping[str, Sequence[Image]], columns: Sequence[str] = (), *, ax: Axes | None = None) -> Axes:
    """A labelled grid: one row a condition, one column a prompt and seed, so that a column shows the same noise.

    Raises:
        InvalidInput: no image, or rows of different length.
    """
    _check_axes(ax)
    columns = checks.strings("columns", columns)
    rows = {name: _row(name, row) for name, row in checks.instance("rows", rows, Mapping, '{"before": images}').items()}
    counts = {len(row) for row in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise InvalidInput(f"the image grid needs rows of equal, non-zero length, not {sorted(counts)}")
    (count,) = counts
    for name, each in rows.items():
        checks.several(f"the images of {name!r}", each, PILImage, "what ns.generate gives")
    sizes = {image.size for row in rows.values() for image in row}
    if len(sizes) > 1:
        raise InvalidInput(f"the image grid needs images of one size, not {sorted(sizes)}")
    ((width, height),) = sizes
    gap = max(2, width // 16)
    canvas = np.full((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, images in enumerate(rows.values()):
        for column, image in enumerate(images):
            top, left = number * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = np.asarray(image.convert("RGB"))
    ax = ax or _axes(1.2 + 0.95 * count, 0.5 + 0.95 * len(rows) * height / width)
    ax.imshow(canvas, interpolation="nearest")
    ax.set_yticks([row * (height + gap) + height / 2 for row in range(len(rows))], list(rows), parse_math=False)
    centres = [column * (width + gap) + width / 2 for column in range(len(columns))]
    ax.set_xticks(centres, [_wrapped(name) for name in columns], parse_math=False)
    ax.tick_params(length=0, labelsize=_SMALL)
    sns.despine(ax=ax, left=True, bottom=True)
    return _finish(ax, "")


def dose(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Effect and collateral against the number of neurons, with 95 % intervals over prompts, those of shares exact: see `summarize`.

    `table` is a concatenation of evaluations with a column `neurons`, and, to draw controls, one named `control`.
    """
    checks.instance("table", table, pd.DataFrame, "evaluations with a column `neurons`")
    _check_axes(ax)
    missing = {"neurons", "metric", "score"} - set(table.columns)
    if missing:
        raise InvalidInput(f"the dose table lacks the columns {', '.join(sorted(missing))}; add them to evaluate's table")
    ax = ax or _axes(_COLUMN * 1.5, _COLUMN)
    look: dict[str, Any] = {"style": "control"} if "control" in table.columns else {}
    metrics = list(table["metric"].unique())
    look["sizes"] = dict(zip(metrics, np.linspace(2.4, 0.8, len(metrics)), strict=True))  # lines that coincide stay visible
    means, errorbar = _by_prompt(table)
    sns.lineplot(means, x="neurons", y="score", hue="metric", size="metric", ax=ax, marker="o", markersize=4, errorbar=errorbar, **look)
    ax.set(xlabel="neurons in the mask", ylabel="share of images" if table["score"].between(0, 1).all() else "score")
    ax.set_ylim(-0.03, 1.03) if table["score"].between(0, 1).all() else None
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=_SMALL, title_fontsize=_SMALL)
    return _finish(ax, "dose")


def graph(graph: HookGraph, *, ax: Axes | None = None) -> Axes:
    """The hook graph: one column a layer in execution order, one row a role, widths as marker sizes, and the data's flow."""
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    _check_axes(ax)
    roles = ("key", "value", "query", "heads", "output", "feedforward")
    pooled = graph.sites.where(role="pooled")
    place: dict[str, tuple[float, float]] = dict.fromkeys(pooled.paths, (-1, 1))
    place |= {site.path: (site.layer, -roles.index(site.role)) for site in graph.sites if site.layer is not None}
    place |= {"prompt": (-1.6, -0.5), "image": (-1.6, -2)}
    ax = ax or _axes(max(_COLUMN, 0.42 * len(graph.sites.layers) + 1), 2.6)
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
        ax.annotate(name, place[name], ha="right", va="center", fontsize=_SMALL)
    rows = dict(zip(roles, range(0, -len(roles), -1), strict=True)) | ({"pooled": 1} if pooled else {})
    ax.set_yticks(list(rows.values()), list(rows))
    ax.set_xticks(graph.sites.layers)
    ax.set(xlabel="cross-attention layer, in execution order", xlim=(-3.4, max(graph.sites.layers) + 0.7))
    sns.despine(ax=ax, left=True)
    ax.tick_params(axis="y", length=0)
    return _finish(ax, f"{graph.model}: blue reads the prompt alone")


def _by_prompt(table: pd.DataFrame) -> tuple[pd.DataFrame, Callable[[pd.Series], tuple[float, float]]]:
    """Each prompt's mean scores, and what gives the interval of their mean; a table without prompts has one a row."""
    keys = [name for name in ("neurons", "metric", "control", "prompt") if name in table.columns]
    means = table.groupby(keys, sort=False)["score"].mean().reset_index() if "prompt" in keys else table.reset_index(drop=True)
    share = {metric: is_share(scores.to_numpy(dtype=float)) for metric, scores in table.groupby("metric", sort=False)["score"]}

    def interval(scores: pd.Series) -> tuple[float, float]:
        known = scores.dropna()
        return mean_interval(known.to_numpy(), share[means["metric"][known.index[0]]])

    return means, interval


def write(ax: Axes, path: str | Path) -> Path:
    """Writes the figure of `ax` in the format of the file's suffix and closes it; pixels are 200 to the inch.

    Raises:
        InvalidFile: the suffix is not .png, .pdf or .svg, or the file cannot be written.
    """
    checks.instance("ax", ax, Axes, "ns.plots.neurons(scores)")
    path = checks.path("path", path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InvalidFile(f"{path} has {f'the suffix {suffix}' if suffix else 'no suffix'}; a figure is written as {', '.join(FORMATS)}")
    figure = cast("Figure", ax.get_figure(root=True))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200, format=suffix.removeprefix("."))
    plt.close(figure)
    return write_beside(Path(path), buffer.getvalue())


def _check_axes(ax: Any) -> None:
    if ax is not None:
        checks.instance("ax", ax, Axes, "plt.subplots()[1]")


def _row(name: Any, row: Any) -> tuple[Any, ...]:
    """A row of the image grid; one image alone is a row of one."""
    checks.text("the name of a row", name, 'such as {"before": images}')
    if isinstance(row, PILImage):
        return (row,)
    if isinstance(row, str) or not isinstance(row, Iterable):
        raise InvalidInput(f"the images of {name!r} are {checks.shown(row)}, not a list of images; give what ns.generate gives")
    return tuple(row)


def _axes(width: float, height: float) -> Axes:
    return plt.subplots(figsize=(width, height), layout="constrained", dpi=150)[1]


def _finish(ax: Axes, title: str) -> Axes:
    ax.set_title(title, fontsize=_NORMAL, parse_math=False)
    ax.tick_params(labelsize=_SMALL)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(_NORMAL)
    for collection in ax.collections:
        if collection.colorbar is not None:
            collection.colorbar.ax.tick_params(labelsize=_SMALL)
            collection.colorbar.ax.yaxis.label.set(fontsize=_SMALL, parse_math=False)
            collection.colorbar.outline.set_visible(False)
    return ax


def _mark(ax: Axes, scores: NeuronScores, marked: Neurons) -> None:
    rows = {path: row for row, path in enumerate(scores.sites.paths)}
    points = [(index + 0.5, rows[path] + 0.5) for path, chosen in marked.items() if path in rows for index in chosen]
    if points:
        across, down = zip(*points, strict=True)
        ax.scatter(across, down, s=9, facecolors="none", edgecolors="black", linewidths=0.6, label="marked")


def _heatmap(ax: Axes, table: pd.DataFrame, label: str, largest: float) -> None:
    """Pale to dark from 0 to `largest`, with as many tick labels as there is room for."""
    gap = 0.5 if table.shape[1] <= 40 else 0.0
    look: dict[str, Any] = {"cmap": _SEQUENTIAL, "vmin": 0, "vmax": largest, "linewidths": gap, "linecolor": "white"}
    sns.heatmap(table, ax=ax, xticklabels=False, yticklabels=False, cbar_kws={"label": label, "pad": 0.01}, **look)
    columns = [str(column) for column in table.columns]
    width, height = cast("Figure", ax.get_figure(root=True)).get_size_inches() * ax.get_position().size
    step = _step(len(columns) * (1 + max(map(len, columns))) * _SMALL / 100 / width)
    ax.set_xticks(np.arange(0, len(columns), step) + 0.5, columns[::step], rotation=0)
    lines = max(1, int(72 * height / len(table) / (1.65 * _SMALL)))
    names = [_wrapped(str(name), max(14, int(4.5 * width)), lines) for name in table.index]
    ax.set_yticks(np.arange(len(table)) + 0.5, names, rotation=0, parse_math=False)


def _step(crowding: float) -> int:
    """Every how many ticks one may be labelled, a round number, if all labels together took `crowding` times the room."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step >= min(crowding, 1000))


def _by_kind(scores: LayerScores) -> pd.DataFrame | None:
    """Scores of components named by kind and number: one row a kind, one column a number. None for other names."""
    parts = [name.rpartition(" ") for name in scores.names]
    if not parts or not all(kind and number.isdecimal() for kind, _, number in parts):
        return None
    cells = [(kind, int(number), score) for (kind, _, number), score in zip(parts, scores.scores, strict=True)]
    table = pd.DataFrame(cells, columns=["kind", "number", "score"])
    return table.pivot_table(index="kind", columns="number", values="score", sort=False).sort_index(axis="columns")


def _method(name: str) -> str:
    return name.removesuffix("()").replace("()", "")


def _wrapped(text: str, width: int = 16, lines: int | None = None) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
