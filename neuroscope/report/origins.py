"""What was asked, of which model, what it cost, and where each file comes from."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add

import pandas as pd

from neuroscope.attribution.recording import Recording
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.quality import Cost
from neuroscope.core.sites import Sites
from neuroscope.report.blocks import Fact, Part, Section
from neuroscope.report.run import Run
from neuroscope.report.tables import counted, tabled
from neuroscope.report.where import method_of


def asked(run: Run) -> Section:
    """Concepts, methods, prompts and seeds."""
    measured = [scores.effects for scores in run.of_kind(LayerScores).values() if scores.effects]
    recorded = [
        f"{each.count('present')} prompts with the concept and {each.count('absent')} without, read at the {each.token} token"
        for each in run.of_kind(Recording).values()
    ]
    said = {
        "concept": run.said("concept"),
        "methods": run.said("method"),
        "recorded": dict.fromkeys(recorded),
        "localised on prompts": dict.fromkeys(prompt for effects in measured for prompt in effects.prompts),
        "localised with seeds": [_listed({seed for effects in measured for seed in effects.seeds})],
        "evaluated on": [counted(len({prompt for table in run.tables.values() for prompt in table["prompt"]}), "prompt")],
        "evaluated with seeds": [_listed({seed for table in run.tables.values() for seed in table["seed"]})],
    }
    if not run.tables:
        del said["evaluated on"]
    facts = [Fact(name, list(texts), code=name == "methods") for name, texts in said.items() if any(texts)]
    return Section("What was asked", [Part(facts=facts)] if facts else [])


def model(run: Run) -> Section:
    """What the results say about the model that they are of."""
    sites = Sites(run.sites().values())
    layers = {len(scores.layers) for scores in run.of_kind(LayerScores).values() if not scores.names}
    said = {
        "name": run.said("model"),
        "family": run.said("family"),
        "layers": [f"{count} cross-attention layers were scored" for count in sorted(layers)],
        "sites": [_described(sites)] if sites else [],
    }
    facts = [Fact(name, texts) for name, texts in said.items() if texts]
    mixed = "This folder holds results of more than one model; compare them with care." if len(run.said("model")) > 1 else ""
    return Section("The model", [Part(said=mixed, facts=facts)] if facts else [])


def cost(run: Run) -> Section:
    """What localisations cost, and all of them together."""
    known = {name: scores.cost for name, scores in run.of_kind(LayerScores).items() if scores.cost}
    rows = [
        (f"{method_of(run.provenance(name).get('method', ''))} ({name.removesuffix('.safetensors')})", each) for name, each in known.items()
    ]
    if len(rows) > 1:
        rows.append(("all", reduce(add, known.values())))
    text = "A denoiser row is one row of a batch through the denoiser once: a count that is the same on every machine."
    return Section("What it cost", [Part(tables=[tabled(_costs(rows), "Cost by file")])] if rows else [], text)


def provenance(run: Run) -> Section:
    """File by file: kind, model, method and versions; and what was left out."""
    parts = []
    if run.headers:
        table = pd.DataFrame([_origin(run, name) for name in run.headers])
        same = [name for name in table.columns[2:] if len(table) > 1 and table[name].nunique() == 1]
        facts = [Fact(name, [table[name].iloc[0]]) for name in same if table[name].iloc[0]]
        text = "The same for all files:" if facts else ""
        parts.append(Part(text=text, facts=facts, tables=[tabled(table.drop(columns=same).replace("", None), "File by file")]))
    if run.skipped:
        parts.append(Part("Left out", facts=[Fact(name, [reason]) for name, reason in run.skipped.items()]))
    return Section("Where it comes from", parts)


def _origin(run: Run, name: str) -> dict[str, str]:
    header, said = run.headers[name], run.provenance(name)
    packages = ", ".join(f"{package} {version}" for package, version in header["packages"].items())
    row = {"file": name, "kind": header["kind"].replace("-", " "), "model": said.get("model", ""), "family": said.get("family", "")}
    return row | {"concept": said.get("concept", ""), "method": said.get("method", ""), "made with": packages}


def _costs(rows: list[tuple[str, Cost]]) -> pd.DataFrame:
    cells = [(name, each.nfe, round(each.seconds, 1), round(each.peak_bytes / 2**30, 2)) for name, each in rows]
    return pd.DataFrame(cells, columns=["found by", "NFE", "seconds", "peak GiB"])


def _described(sites: Sites) -> str:
    layers = counted(len(sites.layers), "layer")
    return f"{counted(len(sites), 'site')} in {layers} were recorded, {counted(sum(site.width for site in sites), 'neuron')}"


def _listed(numbers: Iterable[int]) -> str:
    """Whole numbers in order; a run of them as "0 to 7"."""
    ordered = sorted(int(each) for each in numbers)
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))
