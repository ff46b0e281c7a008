"""Which layers: each localisation's verdict, heatmap, contact sheet and tables."""

from __future__ import annotations

from functools import partial

from neuroscope.core.layer_scores import LayerScores
from neuroscope.report import plots
from neuroscope.report.blocks import Figure, Part, Section, Sheet, Table
from neuroscope.report.drawing import drawn, sheet, shown
from neuroscope.report.run import Run
from neuroscope.report.tables import counted, tabled

#: Tables of more rows than this are folded, and contact sheets of more patches show the best.
_SHORT, _PROBES = 8, 16


def where(run: Run) -> Section:
    """What the run's layer scores say."""
    found = run.of_kind(LayerScores)
    comparison = _comparison(run, found)
    parts = [Part("Methods side by side", figures=comparison)] if comparison else []
    return Section("Which layers", parts + [_part(name, scores, compared=len(_comparable(found)) > 1) for name, scores in found.items()])


def method_of(text: str) -> str:
    """A method's name from its repr, such as "Welch" from "Welch()"; other descriptions stay as they are."""
    return text.partition("(")[0] if text.partition("(")[0].isidentifier() else text.replace("()", "")


def sentence(text: str) -> str:
    """A text with a capital in front and a full stop behind."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _comparison(run: Run, found: dict[str, LayerScores]) -> list[Figure]:
    """The methods that score cross-attention layers in one heatmap, and the heatmap that the demo leaves."""
    same = _comparable(found)
    figures = []
    if len(same) > 1:
        named = {f"{method_of(scores.provenance.method)} ({name.removesuffix('.safetensors')})": scores for name, scores in same.items()}
        alt = f"Heatmap of {counted(len(named), 'method')} by layer"
        figures.append(drawn(partial(plots.layers, named), alt, "Scores of cross-attention layers; each row is scaled to its own largest."))
    if "layers.png" in run.images:
        figures.append(shown(run.images["layers.png"], "Heatmap of layers by method", "Layers by method, as drawn in layers.png."))
    return figures


def _comparable(found: dict[str, LayerScores]) -> dict[str, LayerScores]:
    return {name: scores for name, scores in found.items() if not scores.names}


def _part(name: str, scores: LayerScores, *, compared: bool) -> Part:
    said = sentence(scores.verdict) if scores.effects else f"The best is {scores.name(scores.top(1)[0])}."
    return Part(
        method_of(scores.provenance.method) or "Layer scores",
        f"{name}: {scores.provenance.method}",
        said,
        figures=_figures(scores, compared=compared and not scores.names),
        sheet=_sheet(scores) if scores.images else None,
        tables=_tables(scores),
    )


def _figures(scores: LayerScores, *, compared: bool) -> list[Figure]:
    """The layers' heatmap, unless it is a row of the comparison, and that of their parts."""
    what = counted(len(scores.layers), "component" if scores.names else "layer")
    alt = f"Heatmap of the scores of {what}; the best is {scores.name(scores.top(1)[0])}"
    caption = "Darker: the layer controls the concept more. Negative scores are as pale as 0."
    shown_as = scores if scores.names else {method_of(scores.provenance.method): scores}
    figures = [] if compared else [drawn(partial(plots.layers, shown_as), alt, caption)]
    if scores.effects and len({patch.part for patch in scores.effects.patches if patch.layers}) > 1:
        alt, caption = "Heatmap of effects by layer and part", "The layers with each part patched on its own."
        figures.append(drawn(partial(plots.grid, scores), alt, caption))
    return figures


def _sheet(scores: LayerScores) -> Sheet:
    """The contact sheet, of so many of the best patches as a page has room for."""
    patches = _shown_probes(scores)
    names = ["source", *patches, "target"]
    columns = [scores.columns.index(name) for name in names]
    rows = {prompt: [images[column] for column in columns] for prompt, images in scores.images.items()}
    count = len(scores.columns) - 2
    order = (
        "one column a patch, named by what it changes" if len(patches) == count else f"the best {_PROBES} of {count} patches, best first"
    )
    caption = (
        f'One row a prompt, all from the same noise. "source" is the run that is patched, "target" the total effect; between them {order}.'
    )
    heads = [scores.name(int(name)) if scores.names and name.isdecimal() else name for name in names]
    return sheet(rows, heads, f"{caption} The best is in bold.", names.index(str(scores.best)))


def _shown_probes(scores: LayerScores) -> list[str]:
    effects, patches = scores.effects, list(scores.columns[1:-1])
    if effects is None or len(patches) <= _PROBES:
        return patches
    means = dict(zip(map(str, effects.patches), effects.means(), strict=True))
    return sorted(patches, key=lambda patch: -means[patch])[:_PROBES]


def _tables(scores: LayerScores) -> list[Table]:
    table = scores.to_frame().drop(columns="layer" if scores.names else "name")
    top = table.sort_values("score", ascending=False, kind="stable").head(5)
    tables = [tabled(top, "The best five" if len(table) > 5 else "All layers")]
    if len(table) > 5:
        tables.append(tabled(table, "All components" if scores.names else "All layers", folded=True))
    if scores.effects:
        own = scores.by_prompt()
        own["layer"] = [None if layer is None else scores.name(layer) for layer in own["layer"]]
        tables.append(tabled(own, "Each prompt's own best layer", folded=len(own) > _SHORT))
    return tables
