"""Sections of rankings: layers and neurons. Each ranking has a heatmap and a table of the best under its method's name."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial, reduce
from operator import or_
from typing import Any

from neuroscope.attribution import Welch, score
from neuroscope.attribution.recording import Recording
from neuroscope.core.errors import counted
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.scores import Neurons, NeuronScores
from neuroscope.interventions import NeuronMask
from neuroscope.report import plots
from neuroscope.report.figures import Figure, Sheet, drawn, sheet, shown
from neuroscope.report.run import Run
from neuroscope.report.sections import SHORT, Part, Section, labelled, method_name, section
from neuroscope.report.tables import Table, number, tabled

#: How many layers and neurons a ranking's first table shows, and how many patches a contact sheet.
_BEST_LAYERS, _BEST_NEURONS, _BEST_PATCHES = 5, 12, 16


def layers(run: Run) -> Section:
    """The run's layer scores: the methods side by side, then each with its verdict, plots, contact sheet and tables.

    Scores of causal tracing's components are not compared with scores of cross-attention layers.

    Raises:
        InvalidFile: the file layers.png is damaged.
    """
    found = run.of_kind(LayerScores)
    comparable = {labelled(run, name): scores for name, scores in found.items() if not scores.names}
    compared = len(comparable) > 1
    comparison = Part("Methods side by side", figures=_comparison(run, comparable))
    return section("Which layers", [comparison, *(_layers(name, scores, compared=compared) for name, scores in found.items())])


def neurons(run: Run) -> Section:
    """The run's neuron scores: how far the rankings agree, and of each the heatmap and the strongest neurons.

    A recording is scored by Welch's t unless the run holds scores of the same concept and sites. The file neurons.png is shown only
    if there are no scores.

    Raises:
        InvalidFile: the file neurons.png is shown and damaged.
    """
    ranked = run.of_kind(NeuronScores)
    scored = {(scores.provenance.concept, scores.sites.paths) for scores in ranked.values()}
    for name, recording in run.of_kind(Recording).items():
        if (recording.provenance.concept, recording.sites.paths) not in scored:
            ranked[name] = score(recording, Welch())
    parts = [_neurons(name, scores, _chosen(run, scores)) for name, scores in ranked.items()]
    if not ranked:
        parts = [Part(figures=shown(run.images, "neurons.png", "Heatmap of neurons", "From the file neurons.png."))]
    return section("Which neurons", parts, _agreement(ranked))


def _ranking(file: str, scores: LayerScores | NeuronScores, fallback: str, **contents: Any) -> Part:
    """A part under the method's name, with the file and the method's repr below."""
    method = scores.provenance.method
    return Part(method_name(method) or fallback, f"{file}: {method}", **contents)


def _comparison(run: Run, comparable: Mapping[str, LayerScores]) -> list[Figure]:
    """One panel per method that scores cross-attention layers, and the saved layers.png."""
    alt, caption = f"Scores of layers by {counted(len(comparable), 'method')}", "One panel per method, each with its own unit."
    figures = [drawn(partial(plots.layers, comparable), alt, caption)] if len(comparable) > 1 else []
    return figures + shown(run.images, "layers.png", "Scores of layers by method", "Layers by method, from the file layers.png.")


def _layers(name: str, scores: LayerScores, *, compared: bool) -> Part:
    """One localisation. `compared` says that the comparison already shows its plot."""
    return _ranking(
        name,
        scores,
        "Layer scores",
        finding=_sentence(scores.verdict) if scores.effects else f"The best is {scores.name(scores.top(1)[0])}.",
        figures=_layer_figures(scores, compared=compared and not scores.names),
        sheet=_sheet(scores) if scores.images else None,
        tables=_layer_tables(scores),
    )


def _neurons(name: str, scores: NeuronScores, chosen: Mapping[str, Neurons]) -> Part:
    """One ranking of neurons; the neurons of the sets in `chosen`, by file, are outlined."""
    marked = reduce(or_, chosen.values()) if chosen else None
    what = f"{counted(scores.sites.neuron_count, 'neuron')} in {counted(len(scores.sites), 'site')}"
    outlined = f" The {marked.count} in {' and '.join(chosen)} are outlined." if marked else ""
    figure = drawn(partial(plots.neurons, scores, marked=marked), f"Heatmap of {what}", f"Each neuron's score, one row per site.{outlined}")
    top = scores.to_frame().head(_BEST_NEURONS).drop(columns="site").dropna(axis="columns", how="all")
    table = tabled(top[["rank", *(column for column in top.columns if column != "rank")]], f"The strongest {len(top)} of {what}")
    return _ranking(name, scores, "Neuron scores", figures=[figure], tables=[table])


def _sentence(text: str) -> str:
    """A text that starts with a capital and ends with a full stop."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _layer_figures(scores: LayerScores, *, compared: bool) -> list[Figure]:
    """The layers' scores, unless the comparison shows them, and the heatmap by part if several parts were patched."""
    what = counted(len(scores.layers), "component" if scores.names else "layer")
    alt = f"Plot of the scores of {what}; the best is {scores.name(scores.top(1)[0])}"
    caption = "Layers with higher scores control the concept more. Bars are 95 % intervals where scores were measured on images."
    named = scores if scores.names else {method_name(scores.provenance.method): scores}
    figures = [] if compared else [drawn(partial(plots.layers, named), alt, caption)]
    if scores.effects and len({patch.part for patch in scores.effects.patches if patch.layers}) > 1:
        alt, caption = "Heatmap of effects by layer and part", "Each layer with each part patched on its own."
        figures.append(drawn(partial(plots.grid, scores), alt, caption))
    return figures


def _sheet(scores: LayerScores) -> Sheet:
    """The contact sheet, of at most the 16 best patches."""
    patches, count = _best_patches(scores), len(scores.columns) - 2
    names = ["source", *patches, "target"]
    columns = [scores.columns.index(name) for name in names]
    rows = {prompt: [images[column] for column in columns] for prompt, images in scores.images.items()}
    between = (
        f"the best {len(patches)} of {counted(count, 'patch')}, best first"
        if len(patches) < count
        else "one column per patch, named by its layers"
    )
    caption = (
        'One row per prompt; all images of a row start from the same noise. "source" is the source run, which is patched, '
        f'and "target" the target run, which shows the total effect; between them {between}. The best patch is in bold.'
    )
    heads = [scores.name(int(name)) if scores.names and name.isdecimal() else name for name in names]
    return sheet(rows, heads, caption, names.index(str(scores.best)))


def _best_patches(scores: LayerScores) -> list[str]:
    """The contact sheet's patches in its own order; of too many the best, best first."""
    effects, patches = scores.effects, list(scores.columns[1:-1])
    if effects is None or len(patches) <= _BEST_PATCHES:
        return patches
    means = dict(zip(map(str, effects.patches), effects.means(), strict=True))
    return sorted(patches, key=lambda patch: -means[patch])[:_BEST_PATCHES]


def _layer_tables(scores: LayerScores) -> list[Table]:
    """The best layers, all layers if there are more, and each prompt's own best layer if effects were measured."""
    table = scores.to_frame().drop(columns="layer" if scores.names else "name")
    top = table.sort_values("score", ascending=False, kind="stable").head(_BEST_LAYERS)
    more = len(table) > _BEST_LAYERS
    tables = [tabled(top, "The best five" if more else "All layers")]
    if more:
        tables.append(tabled(table, "All components" if scores.names else "All layers", folded=True))
    if scores.effects:
        own = scores.by_prompt()
        own["layer"] = [None if layer is None else scores.name(layer) for layer in own["layer"]]
        tables.append(tabled(own, "Each prompt's own best layer", folded=len(own) > SHORT))
    return tables


def _chosen(run: Run, scores: NeuronScores) -> dict[str, Neurons]:
    """The neurons of masks and saved sets, by file, that lie within the scored sites."""
    widths = {site.path: site.width for site in scores.sites}
    sets = {name: mask.neurons for name, mask in run.of_kind(NeuronMask).items()} | run.of_kind(Neurons)
    return {name: each for name, each in sets.items() if each and each.widths.items() <= widths.items()}


def _agreement(ranked: Mapping[str, NeuronScores]) -> str:
    """The rank correlation of each two rankings of the same sites, in words."""
    correlations = [
        f"{method_name(first.provenance.method)} and {method_name(second.provenance.method)} agree with a rank correlation "
        f"of {number(first.agreement(second), 2)}"
        for first, second in itertools.combinations(ranked.values(), 2)
        if first.sites.paths == second.sites.paths
    ]
    return f"{'; '.join(correlations)}." if correlations else ""
