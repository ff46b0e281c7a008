"""Sections of facts and tables: setup, model, interventions, evaluation, images, cost and provenance.

Each takes a run and gives a `Section`; without results to show it has no parts, and the page leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, cast

import pandas as pd

from neuroscope.attribution.recording import Recording
from neuroscope.core.errors import counted
from neuroscope.core.intervention import Intervention
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Cost
from neuroscope.core.results.scores import Neurons, NeuronScores
from neuroscope.core.sites import Site, Sites
from neuroscope.evaluation._response import DoseResponse
from neuroscope.evaluation._table import summarize
from neuroscope.interventions import NeuronMask
from neuroscope.report import plots
from neuroscope.report.figures import Figure, Sheet, drawn, shown
from neuroscope.report.run import Run
from neuroscope.report.tables import Table, tabled

#: Tables of more rows than this are folded.
SHORT = 8
#: Images with a place of their own: title, what they show, caption.
_EVALUATED = {
    "images.png": (
        "Before and after",
        "Images before and after",
        "One column per prompt; all images of a column start from the same noise.",
    ),
    "dose.png": ("Dose", "Scores against the number of masked neurons", "Effect and side effects against the number of masked neurons."),
}
_PLACED = {"layers.png", "neurons.png", *_EVALUATED}
#: Entries of a header that are not options of an intervention: shown elsewhere, or too long.
_NO_OPTIONS = {"kind", "format", "sha256", "packages", "provenance", "paths", "widths", "neurons", "report", "sites"}
_KINDS = {
    "neuron-mask": "a mask; it sets neurons to a value",
    "context-swap": "a swap; its sites read another prompt",
    "context-map": "an edit; a low-rank map of what its sites read",
    "neurons": "a set of neurons",
}
_ROWS = {"conditional": "conditional: those that carry the prompt", "all": "all"}


@dataclass(frozen=True)
class Fact:
    """A name and its values; several values are a list. `code` sets them in a fixed-width font."""

    name: str
    texts: Sequence[str]
    code: bool = False


@dataclass(frozen=True)
class Part:
    """One result inside a section.

    Attributes:
        title: its heading.
        source: the file it was read from, and how the file was made.
        finding: the result in one sentence.
        text: what a reader needs to know to read the rest.
        facts: names and values.
        figures: plots and images.
        sheet: a contact sheet.
        tables: tables, the most important first.
    """

    title: str = ""
    source: str = ""
    finding: str = ""
    text: str = ""
    facts: Sequence[Fact] = ()
    figures: Sequence[Figure] = ()
    sheet: Sheet | None = None
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A titled list of parts, with a text in front of them."""

    title: str
    parts: Sequence[Part]
    text: str = ""


def section(title: str, parts: Iterable[Part], text: str = "") -> Section:
    """A section of those parts that have something to show."""
    return Section(title, [part for part in parts if part.facts or part.figures or part.sheet or part.tables], text)


def facts(named: Mapping[str, Iterable[str]], code: Sequence[str] = ()) -> list[Fact]:
    """One fact per name that has a value; the names in `code` are set in a fixed-width font."""
    known = {name: [text for text in texts if text] for name, texts in named.items()}
    return [Fact(name, texts, name in code) for name, texts in known.items() if texts]


def method_name(text: str) -> str:
    """A method's name from its repr, such as "Welch" from "Welch()"; other descriptions stay as they are."""
    return text.partition("(")[0] if text.partition("(")[0].isidentifier() else text.replace("()", "")


def labelled(run: Run, file: str) -> str:
    """A result's method and file, such as "LocoGen (layers)"."""
    return f"{method_name(run.provenance(file).get('method', ''))} ({file.removesuffix('.safetensors')})"


def setup(run: Run) -> Section:
    """Concepts, methods, prompts and seeds."""
    measured = [scores.effects for scores in run.of_kind(LayerScores).values() if scores.effects]
    prompts = {prompt for table in run.tables.values() for prompt in table["prompt"]}
    recorded = [
        f"{counted(each.count('present'), 'prompt')} with the concept and {each.count('absent')} without, read at the {each.token} token"
        for each in run.of_kind(Recording).values()
    ]
    named = {
        "concept": run.recorded("concept"),
        "methods": run.recorded("method"),
        "recorded": dict.fromkeys(recorded),
        "localisation prompts": dict.fromkeys(prompt for effects in measured for prompt in effects.prompts),
        "localisation seeds": [_listed({seed for effects in measured for seed in effects.seeds})],
        "evaluation prompts": [counted(len(prompts), "prompt")] if run.tables else [],
        "evaluation seeds": [_listed({seed for table in run.tables.values() for seed in table["seed"]})],
    }
    return section("Setup", [Part(facts=facts(named, code=["methods"]))])


def model(run: Run) -> Section:
    """The model that the results record: its name, family, and the layers and sites that were scored."""
    sites = Sites(run.sites().values())
    layers = {len(scores.layers) for scores in run.of_kind(LayerScores).values() if not scores.names}
    named = {
        "name": run.recorded("model"),
        "family": run.recorded("family"),
        "layers": [f"{counted(count, 'cross-attention layer', ('was', 'were'))} scored" for count in sorted(layers)],
        "sites": [_described(sites)] if sites else [],
    }
    mixed = "This folder holds results of more than one model; compare them with care." if len(run.recorded("model")) > 1 else ""
    return section("Model", [Part(finding=mixed, facts=facts(named))])


def interventions(run: Run) -> Section:
    """Masks, swaps, edits and sets of neurons, each with its options and its sites.

    An intervention of another kind is shown by its repr and by the options in its header.
    """
    found = run.of_kind(cast("Any", Intervention)) | run.of_kind(Neurons)
    return section("Interventions", [_intervention(name, each, run) for name, each in found.items()])


def evaluation(run: Run) -> Section:
    """Evaluations and dose responses with 95 % intervals, and the files images.png and, without a dose response, dose.png.

    Raises:
        InvalidFile: one of the two files is damaged.
    """
    parts = [_evaluation(name, table) for name, table in run.tables.items()]
    doses = run.of_kind(DoseResponse)
    parts += [_dose(name, response) for name, response in doses.items()]
    for file, (title, alt, caption) in _EVALUATED.items():
        if file == "dose.png" and doses:
            continue
        parts.append(Part(title, file, figures=shown(run.images, file, alt, caption)))
    return section("Evaluation on held-out prompts", parts)


def other_images(run: Run) -> Section:
    """PNG files that no other section shows, each under its name.

    Raises:
        InvalidFile: one of them is damaged.
    """
    figures = [figure for name in run.images if name not in _PLACED for figure in shown(run.images, name, f"The image {name}", name)]
    return section("Other images", [Part(figures=figures)])


def costs(run: Run) -> dict[str, Cost]:
    """By file, what finding layers or ranking neurons cost, where that was measured."""
    layers, neurons = run.of_kind(LayerScores), run.of_kind(NeuronScores)
    known = {name: scores.cost for name, scores in layers.items()} | {name: scores.cost for name, scores in neurons.items()}
    return {name: each for name, each in known.items() if each}


def cost(run: Run) -> Section:
    """The cost of each localisation and ranking in NFE, seconds and GiB of peak memory, and the sum of several."""
    known = costs(run)
    rows = [(labelled(run, name), each) for name, each in known.items()]
    if len(rows) > 1:
        rows.append(("all", reduce(add, known.values())))
    text = "One NFE is one image through the denoiser once; a step under guidance is two. The count is the same on every machine."
    return section("Cost", [Part(tables=[tabled(_costs(rows), "Cost by file")])] if rows else [], text)


def provenance(run: Run) -> Section:
    """Each file's kind, model, concept, method and package versions, and the files that were left out.

    What all files have in common stands above the table.
    """
    skipped = Part("Left out", facts=facts({name: [reason] for name, reason in run.skipped.items()}))
    if not run.headers:
        return section("Provenance", [skipped])
    table = pd.DataFrame([_origin(run, name) for name in run.headers])
    same = [name for name in table.columns[2:] if len(table) > 1 and table[name].nunique() == 1]
    shared = facts({name: [table[name].iloc[0]] for name in same})
    text = "The same for all files:" if shared else ""
    files = tabled(table.drop(columns=same).replace("", None), "File by file")
    return section("Provenance", [Part(text=text, facts=shared, tables=[files]), skipped])


def _intervention(name: str, change: Intervention | Neurons, run: Run) -> Part:
    """The method, concept and options of one file, the quality of an edit, and the sites."""
    header, report = run.headers[name], getattr(change, "report", None)
    named: dict[str, list[str]] = {key: [run.provenance(name).get(key, "")] for key in ("method", "concept")}
    named |= {key: [text] for key, text in _options(header)}
    named["edit quality"] = str(report).split("; ") if report else []
    what = _KINDS.get(header["kind"]) or repr(change)
    sites = _sites(change, run.sites())
    return Part(name.removesuffix(".safetensors"), f"{name}: {what}", facts=facts(named, code=["method"]), tables=[sites])


def _options(header: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options in an intervention's header, each with its value in words."""
    for name, value in header.items():
        if name not in _NO_OPTIONS and value is not None and not isinstance(value, Mapping):
            yield name, _shown(name, value)


def _shown(name: str, value: Any) -> str:
    """The value of an option, in words where there are some."""
    if name == "steps":
        low, high = (f"{100 * each:.0f}" for each in value)
        return "the whole schedule" if (low, high) == ("0", "100") else f"{low} to {high} % of the schedule"
    if name == "rows":
        return _ROWS.get(value, str(value))
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _sites(change: Intervention | Neurons, known: Mapping[str, Site]) -> Table:
    """One row per site: its layer and role where the run describes the site, and how many of its neurons are chosen."""
    chosen = change if isinstance(change, Neurons) else change.neurons if isinstance(change, NeuronMask) else None
    rows = []
    for path in change if isinstance(change, Neurons) else change.paths:
        site = known.get(path)
        row: dict[str, Any] = {"layer": site.label if site else None}
        rows.append(row | ({"neurons": len(chosen[path]), "of": chosen.widths[path]} if chosen else {}) | {"site": path})
    table = pd.DataFrame(rows).dropna(axis="columns", how="all")
    return tabled(table, f"Its {counted(len(rows), 'site')}", folded=len(rows) > SHORT)


def _evaluation(name: str, table: pd.DataFrame) -> Part:
    """The means of one evaluation by metric, as `ns.summarize` gives them."""
    prompts = list(dict.fromkeys(table["prompt"]))
    counts = f"{counted(len(prompts), 'prompt')} and {counted(table['seed'].nunique(), 'seed')}"
    text = (
        f"Means over {counts}, with 95 % intervals over prompts, because images of one prompt are not independent. "
        "Intervals of shares of images are exact."
    )
    return Part(
        "Evaluation", name, text=text, facts=facts({"prompts": prompts}), tables=[tabled(summarize(table), "Scores by metric", by="metric")]
    )


def _dose(name: str, response: DoseResponse) -> Part:
    """The smallest mask that suffices, the plot, and each mask's share of the effect of all neurons."""
    _, alt, caption = _EVALUATED["dose.png"]
    table = tabled(response.shares(), "Effect of each mask as a share of that of all neurons", by="control")
    said = f"{response.metrics[0]}: {response.verdict}."
    return Part("Dose", name, finding=said, figures=[drawn(partial(plots.dose, response), alt, caption)], tables=[table])


def _origin(run: Run, name: str) -> dict[str, str]:
    """A file's row in the table of provenance; what its header does not record is empty."""
    header, recorded = run.headers[name], run.provenance(name)
    packages = ", ".join(f"{package} {version}" for package, version in header["packages"].items())
    row = {"file": name, "kind": header["kind"].replace("-", " ")}
    return row | {key: recorded.get(key, "") for key in ("model", "family", "concept", "method")} | {"made with": packages}


def _costs(rows: list[tuple[str, Cost]]) -> pd.DataFrame:
    cells = [(name, each.nfe, round(each.seconds, 1), round(each.peak_bytes / 2**30, 2)) for name, each in rows]
    table = pd.DataFrame(cells, columns=["result", "NFE", "seconds", "peak GiB"])
    if any(each.halved for _, each in rows):
        table["images in halved groups"] = [each.halved for _, each in rows]
    return table


def _described(sites: Sites) -> str:
    layers = counted(len(sites.layers), "layer")
    return f"{counted(len(sites), 'site')} in {layers} were recorded, {counted(sum(site.width for site in sites), 'neuron')}"


def _listed(numbers: Iterable[int]) -> str:
    """Whole numbers in order; consecutive ones as "0 to 7"."""
    ordered = sorted(int(each) for each in numbers)
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))
