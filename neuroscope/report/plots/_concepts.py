"""Several concepts side by side, and the prompts of one neuron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from scipy.cluster.hierarchy import leaves_list, linkage

from neuroscope.attribution.recording import ARMS, Recording
from neuroscope.core import checks
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.scores import NeuronScores
from neuroscope.report.plots._axes import COLUMN, SMALL, check_axes, finish, heatmap, new_axes, wrapped


def concepts(scores: Mapping[str, Any], *, top: int | None = None, ax: Axes | None = None) -> Axes:
    """A heatmap of concepts by neurons or by layers: which of them several concepts share.

    Columns are the strongest neurons of every concept, or all layers. Each row is scaled to its own largest strength. Rows that are
    alike, and neurons that are, stand side by side (average linkage of Euclidean distances), in the order in which a clustermap has
    them; layers keep their own order.

    Args:
        scores: by concept, `NeuronScores` of the same sites or `LayerScores` of the same layers; an `Atlas` is such a mapping.
        top: how many neurons each concept gives; by default 10, or all where there are fewer. Of layers all are shown.
        ax: where to draw; by default a new figure, 6.8 inches wide.

    Raises:
        InvalidInput: fewer than two concepts, scores of different sites or layers, or an argument of another kind.
    """
    given = dict(checks.instance("scores", scores, Mapping, '{"stipple": scores, "hatch": others}'))
    for each in given.values():
        checks.instance("one of the scores", each, (NeuronScores, LayerScores), "what ns.rank or ns.localize gives")
    if len(given) < 2:
        raise InvalidInput(f"{counted(len(given), 'concept')} cannot be compared; give the scores of at least two")
    check_axes(ax)
    neurons = {name: each for name, each in given.items() if isinstance(each, NeuronScores)}
    layers = {name: each for name, each in given.items() if isinstance(each, LayerScores)}
    if neurons and layers:
        raise InvalidInput("some concepts have scores of neurons and others of layers; give those of one kind")
    if layers and top is not None:
        raise InvalidInput(f"top={top} would be ignored: all layers are shown; leave it out")
    table = _of_neurons(neurons, top) if neurons else _of_layers(layers)
    table = table.div(table.abs().max(axis=1).replace(0, 1), axis=0).iloc[_order(table.to_numpy())]
    if neurons:
        table = table.iloc[:, _order(table.to_numpy().T)]
    ax = ax or new_axes(COLUMN * 2, 1.2 + 0.24 * len(table))
    heatmap(ax, table, "share of its largest", 1)
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, list(table.columns), rotation=90, fontsize=SMALL)
    ax.set(xlabel="layer, role and neuron" if neurons else "", ylabel="")
    return finish(ax, f"{'neurons' if neurons else 'layers'} of several concepts")


def _of_neurons(given: Mapping[str, NeuronScores], top: int | None) -> pd.DataFrame:
    """Strengths by concept and by neuron, of the strongest of every concept."""
    first = next(iter(given.values())).sites
    if any(each.sites != first for each in given.values()):
        raise InvalidInput("the concepts have scores of different sites; score the same sites for each")
    count = min(10, first.neuron_count) if top is None else top
    chosen = [{(path, number) for path, some in each.top(count).items() for number in some} for each in given.values()]
    columns = [(site, number) for site in first for number in range(site.width) if any((site.path, number) in each for each in chosen)]
    rows = {name: [float(each.strength(site.path)[number]) for site, number in columns] for name, each in given.items()}
    return pd.DataFrame(rows, index=[f"{site.label} {number}" for site, number in columns]).T


def _of_layers(given: Mapping[str, LayerScores]) -> pd.DataFrame:
    """Scores by concept and by layer."""
    first = next(iter(given.values()))
    if any((each.layers, each.names) != (first.layers, first.names) for each in given.values()):
        raise InvalidInput("the concepts have scores of different layers; localize by the same method for each")
    return pd.DataFrame({name: each.scores for name, each in given.items()}, index=[first.name(layer) for layer in first.layers]).T


def _order(rows: np.ndarray) -> list[int]:
    """The order of rows in which those that are alike stand side by side."""
    return [0] if len(rows) < 2 else [int(each) for each in leaves_list(linkage(rows, "average", optimal_ordering=True))]


def prompts(recording: Recording, concept: Concept, path: str, neuron: int, *, count: int = 10, ax: Axes | None = None) -> Axes:
    """The prompts at which a neuron is most active; blue ones have the concept, grey ones lack it.

    Args:
        recording: made with `keep_samples=True`.
        concept: what was recorded.
        path: the neuron's site.
        neuron: its number in the site.
        count: how many prompts.
        ax: where to draw; by default a new figure, 6.8 inches wide.

    Raises:
        InvalidInput: the recording kept no samples or is of other prompts, or the site has no such neuron.
        UnknownSite: the site was not recorded.
    """
    checks.instance("recording", recording, Recording, "ns.record(graph, concept, keep_samples=True)")
    checks.instance("concept", concept, Concept, 'ns.Concept.style("Van Gogh")')
    check_axes(ax)
    if not recording.samples:
        raise InvalidInput("the recording keeps no single prompts; record with keep_samples=True")
    (site,) = recording.sites.at([path])
    checks.whole("neuron", neuron, least=0, most=site.width - 1)
    texts = [text for arm in ARMS for text in getattr(concept, arm)]
    values = torch.cat([recording.samples[arm][path][:, neuron] for arm in ARMS]).numpy()
    if len(texts) != len(values):
        raise InvalidInput(
            f"the concept has {counted(len(texts), 'prompt')} and the recording {len(values)}; give the concept that was recorded"
        )
    order = np.argsort(-values, kind="stable")[: checks.whole("count", count)]
    ax = ax or new_axes(COLUMN * 2, 0.7 + 0.2 * len(order))
    colours = ["tab:blue" if index < len(concept.present) else "0.7" for index in order]
    ax.barh(np.arange(len(order)), values[order], color=colours, height=0.7)
    ax.set_yticks(np.arange(len(order)), [wrapped(texts[index], 60, 1) for index in order], parse_math=False)
    ax.invert_yaxis()
    ax.set(xlabel="activation")
    sns.despine(ax=ax)
    return finish(ax, f"{site.label}, neuron {neuron}: top prompts (blue: with {concept.name})")
