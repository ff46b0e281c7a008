"""Commands of the bundled models: demo, and testbed list, certify and train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from neuroscope import testbed
from neuroscope.artifacts import write_beside
from neuroscope.cli import options
from neuroscope.demo import run_demo

bundled = typer.Typer(help="The bundled models whose inside is known.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(demo)
    app.add_typer(bundled, name="testbed")


def demo(
    output_dir: options.OutputFolder = Path("demo"),
    style: Annotated[str, typer.Option(help="The style to find and switch off.")] = "stipple",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Find a style's neurons in the bundled model, switch them off, and show what changed. Two minutes on two cores."""
    options.writable_folder(output_dir)
    outcome = run_demo(output_dir, style, say=(lambda _text: None) if as_json else typer.echo, quiet=quiet)
    if as_json:
        typer.echo(json.dumps(outcome, indent=1))


@bundled.command("list")
def list_() -> None:
    """List the bundled models."""
    for name in testbed.names():
        typer.echo(f"testbed:{name}")


@bundled.command()
def certify(
    name: Annotated[str, typer.Argument(help="sd1 or sd1-natural.")] = "sd1",
    samples: Annotated[int, typer.Option(help="Prompt pairs for each attribute.")] = 60,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write them: FILE.json, or a model card FILE.md.")] = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure where a bundled model keeps each attribute: readers, obedience, and flips under swapped prompts."""
    from neuroscope.testbed.certificate import certify as measure

    if output:
        options.writable_file(output)
    certificate = measure(name, samples=samples, quiet=quiet)
    if output:
        write_beside(output, (certificate.to_card() if output.suffix == ".md" else certificate.to_json()).encode())
    typer.echo(certificate.to_json() if as_json else certificate.to_text())


@bundled.command()
def train(
    name: Annotated[str, typer.Argument(help="clip, sd1-natural or sd1.")],
    output_dir: options.OutputFolder = Path("runs"),
    quiet: options.Quiet = False,
) -> None:
    """Train a bundled model from nothing. A run that was stopped goes on from its checkpoints."""
    from neuroscope.testbed.training.recipes import train as run

    options.writable_folder(output_dir)
    typer.echo(f"wrote {run(name, output_dir, quiet)}")
