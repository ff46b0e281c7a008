"""Commands that look at models and files: sites, doctor, show, plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.axes import Axes

from neuroscope import artifacts, plots
from neuroscope._errors import InvalidInput
from neuroscope.artifacts import Artifact
from neuroscope.attribution import score
from neuroscope.cli import options
from neuroscope.discovery import sites_from_config
from neuroscope.doctor import diagnose
from neuroscope.interventions import ContextMap, NeuronMask
from neuroscope.layer_scores import LayerScores
from neuroscope.recording import Recording
from neuroscope.scores import Neurons, NeuronScores


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    for command in (sites, doctor, show, plot):
        app.command()(command)


def sites(
    model: options.Model = "testbed:sd1",
    config: Annotated[Path | None, typer.Option(help="Instead of a model: a denoiser's config.json; no weights are needed.")] = None,
    layer: options.Layers = None,
    role: options.Roles = None,
    as_json: options.AsJson = False,
) -> None:
    """List what a model exposes: sites in execution order, with layer, role and width."""
    graph = None if config else options.open_graph(model)
    found = graph.sites if graph else sites_from_config(config or "")
    chosen = found.where(layer=layer or None, role=role or None)
    table = chosen.to_frame()
    typer.echo(table.to_json(orient="records", indent=1) if as_json else f"{graph or config}\n{table.to_string(index=False)}\n{chosen}")


def doctor(model: options.Model = "testbed:sd1", as_json: options.AsJson = False) -> None:
    """Say what about a model would make hooks silent or wrong."""
    findings = diagnose(options.open_pipeline(model))
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=1))
        return
    for finding in findings:
        typer.echo(f"{finding.state:5}  {finding.name}: {finding.meaning}")


def show(file: Path, rows: Annotated[int, typer.Option(help="Table rows to print.")] = 10, as_json: options.AsJson = False) -> None:
    """Say what a saved file holds."""
    header = artifacts.read_header(file)
    if as_json:
        typer.echo(json.dumps(header, indent=1))
        return
    found: Artifact = artifacts.load(file)
    typer.echo(repr(found))
    for name, value in (header.get("provenance", {}) | header["packages"]).items():
        typer.echo(f"  {name}: {value}")
    if isinstance(found, NeuronScores):
        typer.echo(found.to_frame().head(rows).to_string(index=False))
    if isinstance(found, LayerScores):
        typer.echo(found.to_frame().round(3).to_string(index=False))
        typer.echo(f"  cost: {found.cost}" if found.cost else "")
    if isinstance(found, ContextMap):
        typer.echo(f"  {found.report}\n  " + "\n  ".join(found.paths))
    neurons = found.neurons if isinstance(found, NeuronMask) else found
    if isinstance(neurons, Neurons):
        for path, chosen in neurons.items():
            typer.echo(f"  {path}: {len(chosen)} of {neurons.widths[path]}: {', '.join(map(str, chosen))}")


def plot(
    file: Path,
    output: options.Output = Path("plot.png"),
    layers: Annotated[bool, typer.Option("--layers", help="Of neurons' scores: plot layers.")] = False,
    grid: Annotated[bool, typer.Option("--grid", help="Of layers' scores: plot layers by part of the schedule or kind of token.")] = False,
    images: Annotated[bool, typer.Option("--images", help="Of layers' scores: the contact sheet, one column a window.")] = False,
    top: Annotated[int, typer.Option(help="Outline this many of the strongest neurons.")] = 0,
    method: Annotated[str, typer.Option(help="The method that scores a recording.")] = "welch",
) -> None:
    """Draw the heatmap of a saved recording's or scores' neurons or layers, or a contact sheet."""
    options.writable_file(output)
    found: Artifact = artifacts.load(file)
    if isinstance(found, Recording):
        found = score(found, options.open_method(method))
    if isinstance(found, LayerScores):
        ax = _layers_plot(found, grid, images)
    elif isinstance(found, NeuronScores):
        ax = plots.layers(found.by_layer()) if layers else plots.neurons(found, marked=found.top(top) if top else None)
    else:
        raise InvalidInput(f"{file} holds a {found.kind}, which has no plot; give a recording or scores")
    plots.write(ax, output)
    typer.echo(f"wrote {output}")


def _layers_plot(scores: LayerScores, grid: bool, images: bool) -> Axes:
    if images:
        if not scores.images:
            raise InvalidInput("these scores keep no pictures, so there is no contact sheet; localize with keep_images")
        return plots.images(scores.images, scores.columns)
    return plots.grid(scores) if grid else plots.layers(scores)
