"""The sections of a report, each from what a run holds of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neuroscope import plots
from neuroscope.attribution import Welch, score
from neuroscope.evaluation import summarize
from neuroscope.interventions import ContextMap, Intervention, NeuronMask
from neuroscope.layer_scores import LayerScores
from neuroscope.recording import Recording
from neuroscope.reporting.blocks import Figure, Part, Section, drawn, sheet, shown, tabled
from neuroscope.reporting.run import Run
from neuroscope.scores import NeuronScores

_TOP = 12
_CAPTIONS = {
    "images.png": "Before and after: a column is one prompt and starts from the same noise.",
    "dose.png": "Effect and collateral against the number of neurons.",
    "layers.png": "Layers by several methods.",
    "neurons.png": "Neurons; the masked ones are outlined.",
}
_SAID = ("family", "model", "concept", "method")


def title_of(run: Run) -> tuple[str, str]:
    """The page's title and the line under it."""
    concepts = _distinct(run, "concept")
    models = _distinct(run, "model")
    title = f"{', '.join(concepts)}: where a model keeps it" if concepts else f"Results in {run.folder.resolve().name}"
    return title, f"{', '.join(models) or 'no model named'} · {len(run.artifacts)} results, {len(run.tables)} evaluations"


def sections_of(run: Run) -> list[Section]:
    """The sections that have something to show."""
    found = [_asked(run), _layers(run), _neurons(run), _changes(run), _evaluations(run), _cost(run), _provenance(run)]
    return [section for section in found if section.parts]


def _asked(run: Run) -> Section:
    rows = [(name, ", ".join(values)) for name in ("concept", "model", "family", "method") if (values := _distinct(run, name))]
    measured = next((each.effects for each in run.of_kind(LayerScores).values() if each.effects), None)
    if measured:
        rows += [("prompts", "; ".join(measured.prompts)), ("seeds", ", ".join(map(str, measured.seeds)))]
    return Section("What was asked", [Part(facts=rows)] if rows else [])


def _layers(run: Run) -> Section:
    return Section("Which layers", [_layer_part(name, scores) for name, scores in run.of_kind(LayerScores).items()])


def _layer_part(name: str, scores: LayerScores) -> Part:
    method = scores.provenance.method or name
    figures = [drawn(plots.layers({"": scores}), f"Each layer's score, {method}; darker controls the concept more.")]
    tables = [tabled(scores.to_frame(), "All layers, with 95 % intervals over prompts and seeds", folded=True)]
    said = ""
    if scores.effects:
        said = f"{scores.verdict[0].upper()}{scores.verdict[1:]}."
        if len({probe.part for probe in scores.effects.probes}) > 1:
            figures.append(drawn(plots.grid(scores), "The same by part."))
        tables.append(tabled(scores.by_prompt(), "Each prompt's own best layer", folded=True))
    caption = "The unchanged run, one column for each change, and the full change. A row shares its noise."
    pictures = sheet(scores.images, scores.columns, caption) if scores.images else None
    return Part(f"{method} ({name})", said, figures=figures, sheet=pictures, tables=tables)


def _neurons(run: Run) -> Section:
    ranked = run.of_kind(NeuronScores) | {name: score(each, Welch()) for name, each in run.of_kind(Recording).items()}
    masks = list(run.of_kind(NeuronMask).values())
    parts = []
    for name, scores in ranked.items():
        marked = next((mask.neurons for mask in masks if set(mask.paths) <= set(scores.sites.paths)), None)
        caption = f"Every neuron's score, {scores.provenance.method}" + ("; the masked ones are outlined." if marked else ".")
        top = scores.to_frame().head(_TOP).drop(columns="site")
        figures = [drawn(plots.neurons(scores, marked=marked), caption)]
        parts.append(Part(f"{scores.provenance.method} ({name})", figures=figures, tables=[tabled(top)]))
    return Section("Which neurons", parts)


def _changes(run: Run) -> Section:
    return Section("What was changed", [Part(name, facts=list(_change(each))) for name, each in run.of_kind(Intervention).items()])


def _change(change: Intervention) -> Iterator[tuple[str, Any]]:
    yield "kind", change.kind
    if isinstance(change, NeuronMask):
        yield "neurons", f"{change.neurons.count} in {len(change.neurons)} sites"
    yield "sites", ", ".join(change.paths)
    for option in ("strength", "rows", "tokens", "steps"):
        if getattr(change, option, None) is not None:
            yield option, getattr(change, option)
    if isinstance(change, ContextMap) and change.report:
        yield "how it is posed", change.report


def _evaluations(run: Run) -> Section:
    parts = []
    for name, table in run.tables.items():
        counts = f"{table['prompt'].nunique()} prompts, {table['seed'].nunique()} seeds; means with 95 % intervals over prompts"
        parts.append(Part(name, facts=[("measured on", counts)], tables=[tabled(summarize(table))]))
    figures = [_picture(run, name) for name in run.pictures]
    return Section("Does it hold?", parts + ([Part("Pictures", figures=figures)] if figures else []))


def _picture(run: Run, name: str) -> Figure:
    return shown(run.pictures[name].read_bytes(), _CAPTIONS.get(name, name))


def _cost(run: Run) -> Section:
    rows = [(f"{each.provenance.method} ({name})", each.cost) for name, each in run.of_kind(LayerScores).items() if each.cost]
    text = "A denoiser row is one row of a batch through the denoiser once: exact, and the same on every machine."
    return Section("What it cost", [Part(facts=rows)] if rows else [], text)


def _provenance(run: Run) -> Section:
    parts = []
    for name, header in run.headers.items():
        said = _provenance_of(header)
        rows = [("kind", header["kind"]), *((key, said[key]) for key in _SAID if said.get(key))]
        rows.append(("made with", ", ".join(f"{package} {version}" for package, version in header["packages"].items())))
        parts.append(Part(name, facts=rows))
    parts += [Part(name, facts=[("left out", reason)]) for name, reason in run.skipped.items()]
    return Section("Where it comes from", parts)


def _provenance_of(header: dict[str, Any]) -> dict[str, str]:
    return header.get("provenance") or {}


def _distinct(run: Run, name: str) -> list[str]:
    """What the results' provenances say of one thing, each once."""
    values = (_provenance_of(header).get(name) for header in run.headers.values())
    return list(dict.fromkeys(value for value in values if value))
