"""Commands that look at models and files: sites, doctor, show, plot."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from neuroscope.cli import choices, opening, options, values
from neuroscope.cli.concepts import attribution
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.sharing import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

    from neuroscope.core.artifacts import Artifact
    from neuroscope.core.results.layer_scores import LayerScores
    from neuroscope.core.results.scores import NeuronScores


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    for command in (sites, doctor, show, merge, plot, report):
        app.command()(command)


def sites(
    ctx: typer.Context,
    *,
    model: options.ModelOptions,
    sites: options.SiteOptions,
    printed: options.Printing,
) -> None:
    """List what a model exposes: sites in execution order, with layer, role and width."""
    from neuroscope.pipeline.discovery import sites_from_config

    config = None if model.is_file else model.config
    if config is not None:
        unused = [each.name for each in fields(model) if each.name != "config"]
        values.refuse_unused(ctx, dict.fromkeys(unused, "the sites are those of --config, and no model is opened"))
    graph = None if config is not None else model.open(None)
    found = graph.sites if graph else sites_from_config(config or "")
    chosen = found.where(layer=sites.layer or None, role=sites.role or None)
    if graph is not None:
        printed.note_model(graph.pipe)
    table = chosen.to_frame()
    text = f"{graph or config}\n{terminal.table(table[[*table.columns.drop('path'), 'path']])}\n{chosen}"
    options.say(table.to_json(orient="records", indent=1) if printed.as_json else text)


def doctor(*, model: options.ModelOptions, printed: options.Printing) -> None:
    """Check a model for settings that break hooks; says where it runs and how large it is."""
    from neuroscope.pipeline.doctor import diagnose

    findings = diagnose(model.open_pipeline(printed))
    printed.report(
        [vars(finding) for finding in findings],
        "\n".join(f"{finding.state:5}  {finding.name}: {finding.meaning}" for finding in findings),
    )


def show(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(help="A saved file, an image (.png), or a ledger: a folder, a URL or a .jsonl file.")],
    rows: Annotated[int, typer.Option(callback=values.whole(), help="Of neurons' scores: table rows to print.")] = 10,
    as_json: options.AsJson = False,
) -> None:
    """Say what a saved file holds, what an image (.png) was made of, or what of a ledger is done, missing and failed."""
    from neuroscope.generation.ledgers import LedgerSummary, is_ledger

    if is_ledger(file):
        values.refuse_unused(ctx, {"rows": f"{file} is a ledger, which has no table"})
        summary = LedgerSummary.of(file)
        options.report(summary.to_facts(), str(summary), as_json)
    else:
        _show_file(ctx, Path(file), rows, as_json)


def merge(
    ledgers: Annotated[list[str], typer.Argument(help="Ledgers of one run, such as those of its shards: folders, URLs or .jsonl files.")],
    *,
    output: Annotated[str, typer.Option("--output", "-o", help="The new ledger, a folder or URL.")],
    mixed: Annotated[bool, typer.Option("--mixed", help="Join rows of one run although made under different conditions.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Join ledgers of shards into one, from which the same command, with --resume, makes its table without an image."""
    from neuroscope.generation.ledgers import merge as run

    summary = run(ledgers, output, mixed=mixed)
    options.report({"output": output} | summary.to_facts(), f"{summary}\nwrote {output}", as_json)


def _show_file(ctx: typer.Context, file: Path, rows: int, as_json: bool) -> None:
    """Prints what a saved file holds, or what an image was made of."""
    from neuroscope.core import artifacts
    from neuroscope.core.results.atlas import Atlas
    from neuroscope.core.results.scores import NeuronScores

    if file.suffix.lower() == ".png":
        values.refuse_unused(ctx, {"rows": f"{file} is an image, which has no table"})
        _show_image(file, as_json)
        return
    found: Artifact = artifacts.load(file)
    header = artifacts.read_header(file)
    if as_json:
        values.refuse_unused(ctx, {"rows": "--json prints the file's header, and no table"})
    first = next(iter(found.values())) if isinstance(found, Atlas) else found
    if not isinstance(first, NeuronScores):
        values.refuse_unused(ctx, {"rows": f"{file} holds a {found.kind}, and only neuron-scores have a table to cut"})
    options.report(header, "\n".join(_described(found, header, rows)), as_json)


def _show_image(file: Path, as_json: bool) -> None:
    """Prints what an image was made of."""
    from neuroscope.generation.labels import read_label

    facts = read_label(file)
    flat = {name: value for name, value in facts.items() if name != "settings"} | facts.get("settings", {})
    lines = [f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in flat.items() if value != []]
    options.report(facts, "\n".join(lines), as_json)


def _described(found: Artifact, header: dict[str, Any], rows: int) -> Iterator[str]:
    """The lines that `show` prints."""
    from neuroscope.core.results.atlas import Atlas
    from neuroscope.core.results.layer_scores import LayerScores
    from neuroscope.core.results.scores import Neurons, NeuronScores
    from neuroscope.evaluation import DoseResponse
    from neuroscope.interventions import ContextMap, NeuronMask

    yield repr(found)
    for name, value in ((header.get("provenance") or {}) | (header.get("packages") or {})).items():
        yield f"  {name}: {value}"
    if isinstance(found, Atlas):
        table = found.to_frame()
        yield terminal.table(table.groupby("concept", sort=False).head(rows) if "neuron" in table else table)
    if isinstance(found, NeuronScores):
        yield terminal.table(found.to_frame().head(rows))
    if isinstance(found, LayerScores):
        yield terminal.table(found.to_frame())
        yield f"  cost: {found.cost}" if found.cost else ""
    if isinstance(found, DoseResponse):
        yield terminal.table(found.shares())
        yield f"  {found.verdict}"
    if isinstance(found, ContextMap):
        yield f"  {found.report}\n  " + "\n  ".join(found.paths)
    neurons = found.neurons if isinstance(found, NeuronMask) else found
    if isinstance(neurons, Neurons):
        for path, chosen in neurons.items():
            yield f"  {path}: {len(chosen)} of {neurons.widths[path]}: {', '.join(map(str, chosen))}"


def plot(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Scores, a recording, a dose response or an atlas.")],
    output: options.Output = Path("plot.png"),
    layers: Annotated[bool, typer.Option("--layers", help="Of neurons' scores: plot layers.")] = False,
    grid: Annotated[bool, typer.Option("--grid", help="Of layers' scores: plot layers by part of the schedule or kind of token.")] = False,
    images: Annotated[bool, typer.Option("--images", help="Of layers' scores: the contact sheet, one column a window.")] = False,
    view: Annotated[
        str, choices.option(choices.VIEWS, help="Of neurons: by site, by rank in each, the strongest by name, or effect against q-value.")
    ] = "map",
    top: Annotated[
        int | None,
        typer.Option(callback=values.whole(), help="Outline this many neurons (top, volcano: name them); of an atlas, as many a concept."),
    ] = None,
    method: options.Method = "Welch",
    context: Annotated[str, choices.option(choices.CONTEXTS, help="talk: larger texts and lines, for slides.")] = "paper",
) -> None:
    """Draw the neurons (a heatmap) or layers (points) of a saved recording or scores, a contact sheet, a dose response, or an atlas."""
    from neuroscope.attribution import score
    from neuroscope.attribution.recording import Recording
    from neuroscope.core import artifacts
    from neuroscope.core.results.atlas import Atlas
    from neuroscope.core.results.layer_scores import LayerScores
    from neuroscope.core.results.scores import NeuronScores
    from neuroscope.evaluation import DoseResponse
    from neuroscope.report import plots

    if output.suffix.lower() not in plots.FORMATS:
        raise InvalidInput(f"{output} is no file that a plot can be written to; end its name in {', '.join(plots.FORMATS)}")
    opening.check_output(output, file)
    asked = attribution(method)
    choose("view", view, choices.VIEWS)
    choose("context", context, choices.CONTEXTS)
    found: Artifact = artifacts.load(file)
    if not isinstance(found, Recording | NeuronScores | LayerScores | DoseResponse | Atlas):
        raise InvalidInput(f"{file} holds a {found.kind}, which has no plot; give a recording or scores")
    values.refuse_unused(ctx, dict.fromkeys(_unused(found, layers, images), f"it does not belong to this plot of a {found.kind}"))
    if isinstance(found, LayerScores):
        ax = _layers_plot(found, grid, images)
    elif isinstance(found, DoseResponse):
        ax = plots.dose(found)
    elif isinstance(found, Atlas):
        ax = plots.concepts(found, top=top)
    else:
        scores = score(found, asked) if isinstance(found, Recording) else found
        ax = plots.layers(scores.by_layer()) if layers else _neurons_plot(scores, view, top)
    plots.write(ax, output, context=cast("Any", context))
    options.say(f"wrote {output}")


def _unused(found: Artifact, layers: bool, images: bool) -> tuple[str, ...]:
    """The options of `plot` that say nothing about a file's plot."""
    from neuroscope.attribution.recording import Recording
    from neuroscope.core.results.atlas import Atlas
    from neuroscope.core.results.layer_scores import LayerScores
    from neuroscope.core.results.scores import NeuronScores
    from neuroscope.evaluation import DoseResponse

    if isinstance(found, DoseResponse):
        return ("layers", "grid", "images", "view", "top", "method")
    if isinstance(found, Atlas):
        of_neurons = isinstance(next(iter(found.values())), NeuronScores)
        return ("layers", "grid", "images", "view", "method", *([] if of_neurons else ["top"]))
    if isinstance(found, LayerScores):
        return ("layers", "view", "top", "method", *(["grid"] if images else []))
    return ("grid", "images", *(["view", "top"] if layers else []), *([] if isinstance(found, Recording) else ["method"]))


def _neurons_plot(scores: NeuronScores, view: str, top: int | None) -> Axes:
    from neuroscope.report import plots

    if view == "volcano":
        return plots.volcano(scores) if top is None else plots.volcano(scores, named=top)
    if view == "top":
        return plots.neurons(scores, view="top") if top is None else plots.neurons(scores, view="top", top=top)
    return plots.neurons(scores, view=cast("Any", view), marked=None if top is None else scores.top(top))


def _layers_plot(scores: LayerScores, grid: bool, images: bool) -> Axes:
    from neuroscope.report import plots

    if images:
        if not scores.images:
            raise InvalidInput("these scores keep no images, so there is no contact sheet; localize with keep_images")
        return plots.images(scores.images, scores.columns)
    return plots.grid(scores) if grid else plots.layers(scores)


def report(
    run: Annotated[Path, typer.Argument(help="A folder of results, such as `neuroscope demo` writes.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; by default report.html in the folder.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write one self-contained HTML page of a run's results."""
    from neuroscope.report import report as write

    opening.check_output(output)
    path = write(run, output)
    options.report({"output": str(path)}, f"wrote {path}; open it in a browser", as_json)
