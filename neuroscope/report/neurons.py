"""Which neurons: heatmaps and the strongest of each ranking."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial, reduce
from operator import or_

from neuroscope.attribution import Welch, score
from neuroscope.attribution.recording import Recording
from neuroscope.core.scores import Neurons, NeuronScores
from neuroscope.interventions import NeuronMask
from neuroscope.report import plots
from neuroscope.report.blocks import Part, Section
from neuroscope.report.drawing import drawn, shown
from neuroscope.report.run import Run
from neuroscope.report.tables import counted, number, tabled
from neuroscope.report.where import method_of

_TOP = 12


def neurons(run: Run) -> Section:
    """What the run's neuron scores say, and of recordings that no scores were saved of, Welch's t."""
    ranked = run.of_kind(NeuronScores)
    scored = {(scores.provenance.concept, scores.sites.paths) for scores in ranked.values()}
    for name, recording in run.of_kind(Recording).items():
        if (recording.provenance.concept, recording.sites.paths) not in scored:
            ranked[name] = score(recording, Welch())
    parts = [_part(name, scores, _chosen(run, scores)) for name, scores in ranked.items()]
    if not ranked and "neurons.png" in run.images:
        parts = [Part(figures=[shown(run.images["neurons.png"], "Heatmap of neurons", "As drawn in neurons.png.")])]
    return Section("Which neurons", parts, _agreement(ranked))


def _part(name: str, scores: NeuronScores, chosen: Mapping[str, Neurons]) -> Part:
    marked = reduce(or_, chosen.values()) if chosen else None
    what = f"{counted(scores.sites.neuron_count, 'neuron')} in {counted(len(scores.sites), 'site')}"
    outlined = f" The {marked.count} in {' and '.join(chosen)} are outlined." if marked else ""
    caption = f"Each neuron's score, one row a site.{outlined}"
    figure = drawn(partial(plots.neurons, scores, marked=marked), f"Heatmap of {what}", caption)
    top = scores.to_frame().head(_TOP).drop(columns="site")
    table = tabled(top[["rank", *(column for column in top.columns if column != "rank")]], f"The strongest {len(top)} of {what}")
    method = scores.provenance.method
    return Part(method_of(method) or "Neuron scores", f"{name}: {method}", figures=[figure], tables=[table])


def _chosen(run: Run, scores: NeuronScores) -> dict[str, Neurons]:
    """The masks' neurons and the saved sets, by file, that lie within the scored sites."""
    widths = {site.path: site.width for site in scores.sites}
    sets = {name: mask.neurons for name, mask in run.of_kind(NeuronMask).items()} | run.of_kind(Neurons)
    return {name: each for name, each in sets.items() if each and each.widths.items() <= widths.items()}


def _agreement(ranked: Mapping[str, NeuronScores]) -> str:
    """How alike the rankings of the same sites are."""
    said = [
        f"{method_of(first.provenance.method)} and {method_of(second.provenance.method)} agree with a rank correlation "
        f"of {number(first.agreement(second), 2)}"
        for first, second in itertools.combinations(ranked.values(), 2)
        if first.sites.paths == second.sites.paths
    ]
    return f"{'; '.join(said)}." if said else ""
