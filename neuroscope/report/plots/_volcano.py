"""The volcano plot: how large each neuron's effect is, against how sure it is."""

from __future__ import annotations

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.results.scores import NeuronScores
from neuroscope.report.plots._axes import COLUMN, SMALL, check_axes, finish, new_axes, wrapped

#: The smallest q-value that is drawn apart from smaller ones.
_LEAST = 1e-300


def volcano(scores: NeuronScores, *, q: float = 0.05, named: int = 5, ax: Axes | None = None) -> Axes:
    """Every neuron's score against −log10 of its q-value (Benjamini and Hochberg over all neurons); higher is surer.

    A dashed line stands at `q`; neurons above it are blue.

    Args:
        scores: scores with p-values, such as `ns.score(recording, ns.Welch())`.
        q: the false-discovery rate of the line, between 0 and 1.
        named: how many of the surest neurons have their names beside them.
        ax: where to draw; by default a new figure, 3.4 inches wide.

    Raises:
        InvalidInput: the scores have no p-values, or an argument is of another kind.
    """
    checks.instance("scores", scores, NeuronScores, "ns.score(recording, ns.Welch())")
    line = checks.finite("q", q, above=0, most=1)
    checks.whole("named", named, least=0)
    check_axes(ax)
    if not scores.p_values:
        raise InvalidInput(f"{scores.provenance.method!r} gives no p-values, which this plot is made of; use a test such as ns.Welch()")
    q_values = torch.cat(list(scores.q_values().values())).numpy()
    effect = torch.cat([scores.scores[path] for path in scores.sites.paths]).numpy()
    height = -np.log10(np.maximum(q_values, _LEAST))
    ax = ax or new_axes(COLUMN, 2.6)
    found = q_values <= line
    for chosen, colour in ((~found, "0.7"), (found, "tab:blue")):
        ax.scatter(effect[chosen], height[chosen], s=5, color=colour, linewidths=0, rasterized=True)
    ax.axhline(-np.log10(line), color="0.4", linewidth=0.7, linestyle=(0, (4, 3)))
    ax.axvline(scores.neutral, color="0.8", linewidth=0.7, zorder=0)
    _name(ax, scores, effect, height, named)
    ax.margins(x=0.24, y=0.1)
    ax.set(xlabel=wrapped(scores.provenance.method.replace("()", ""), 50), ylabel="−log10 q")
    sns.despine(ax=ax)
    return finish(ax, f"{scores.provenance.concept}: {int(found.sum()):,} of {counted(len(found), 'neuron')} with q ≤ {line:g}")


def _name(ax: Axes, scores: NeuronScores, effect: np.ndarray, height: np.ndarray, named: int) -> None:
    """Writes the names of the surest neurons in a column on the side away from neutral, each with a line to its neuron."""
    names = [f"{site.label} {number}" for site in scores.sites for number in range(site.width)]
    order = np.lexsort((-np.abs(effect - scores.neutral), -height))[:named]
    for sign, align in ((1, "left"), (-1, "right")):
        mine = [each for each in order if (effect[each] >= scores.neutral) == (sign > 0)]
        column, lowest = sign * max((sign * effect[each] for each in mine), default=0.0) + sign * 0.08 * np.ptp(effect), np.inf
        for index in mine:
            lowest = min(height[index], lowest - 0.06 * max(height.max(), 1e-9))
            ax.annotate(
                names[index],
                (effect[index], height[index]),
                xytext=(column, lowest),
                fontsize=SMALL,
                ha=align,
                va="center",
                parse_math=False,
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 1},
            )
