"""What was changed: masks, swaps, edits, and any other saved intervention by what its header says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import pandas as pd

from neuroscope.core.intervention import Intervention
from neuroscope.core.scores import Neurons
from neuroscope.core.sites import Site
from neuroscope.interventions import NeuronMask
from neuroscope.report.blocks import Fact, Part, Section, Table
from neuroscope.report.run import Run
from neuroscope.report.tables import counted, tabled

_SHORT = 8
#: What of a header is not an option: shown elsewhere, or too long.
_NO_OPTIONS = {"kind", "format", "packages", "provenance", "paths", "widths", "neurons", "report", "sites"}
_KINDS = {
    "neuron-mask": "a mask, which drives neurons to a value",
    "context-swap": "a swap, by which sites read another prompt",
    "context-map": "an edit, a low-rank map of what sites read",
    "neurons": "a set of neurons",
}
_ROWS = {"conditional": "conditional: those that carry the prompt", "all": "all"}


def changes(run: Run) -> Section:
    """The run's interventions."""
    found = run.of_kind(cast("Any", Intervention)) | run.of_kind(Neurons)
    return Section("What was changed", [_part(name, each, run) for name, each in found.items()])


def _part(name: str, change: Intervention | Neurons, run: Run) -> Part:
    header = run.headers[name]
    facts = [Fact("made by", [method], code=True) for method in [run.provenance(name).get("method")] if method]
    facts += [Fact("concept", [concept]) for concept in [run.provenance(name).get("concept")] if concept]
    facts += list(_options(header))
    if posed := getattr(change, "report", None):
        facts.append(Fact("how it is posed", str(posed).split("; ")))
    what = _KINDS.get(header["kind"]) or repr(change)
    return Part(name.removesuffix(".safetensors"), f"{name}: {what}", facts=facts, tables=[_sites(change, run.sites())])


def _options(header: Mapping[str, Any]) -> Iterator[Fact]:
    for name, value in header.items():
        if name in _NO_OPTIONS or value is None or isinstance(value, Mapping):
            continue
        yield Fact(name, [_said(name, value)])


def _said(name: str, value: Any) -> str:
    if name == "steps":
        low, high = (f"{100 * each:.0f}" for each in value)
        return "the whole schedule" if (low, high) == ("0", "100") else f"{low} to {high} % of the schedule"
    if name == "rows":
        return _ROWS.get(value, str(value))
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _sites(change: Intervention | Neurons, known: Mapping[str, Site]) -> Table:
    chosen = change if isinstance(change, Neurons) else change.neurons if isinstance(change, NeuronMask) else None
    rows = []
    for path in change if isinstance(change, Neurons) else change.paths:
        site = known.get(path)
        row: dict[str, Any] = {"layer": site.label} if site else {"layer": None}
        rows.append(row | ({"neurons": len(chosen[path]), "of": chosen.widths[path]} if chosen else {}) | {"site": path})
    table = pd.DataFrame(rows).dropna(axis="columns", how="all")
    return tabled(table, f"Its {counted(len(rows), 'site')}", folded=len(rows) > _SHORT)
