"""Commands of the bundled models: demo, and testbed list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

<<<<<<< HEAD
from neuroscope.cli import options, printing
=======
from neuroscope.cli import opening, options, values
>>>>>>> cli
from neuroscope.cli.commands import App, LightCommand
from neuroscope.core.errors import choose

bundled = App(help="The bundled models whose inside is known.")


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(demo)
    app.add_typer(bundled, name="testbed")


def help_without_command(ctx: typer.Context) -> None:
    """Prints the help of a group of commands, and leaves with the status of a mistake, where none of them is given."""
    if ctx.invoked_subcommand is None:
        options.say(ctx.get_help())
        raise typer.Exit(2)


@bundled.callback(invoke_without_command=True)
def choose_command(ctx: typer.Context) -> None:
    """The bundled models whose inside is known."""
    help_without_command(ctx)


def demo(
    output_dir: options.OutputFolder = Path("demo"),
    style: Annotated[str, typer.Option(help="The style to find and switch off.")] = "stipple",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Find a style's neurons in the bundled model, switch them off, and show what changed. Two minutes on two cores."""
    from neuroscope.core import storage
    from neuroscope.demo import DEMO_STYLES, run_demo

    choose("style", style, DEMO_STYLES)
    storage.check_writable_folder(output_dir)
    outcome = run_demo(output_dir, style, say=(lambda _text: None) if as_json else options.say, quiet=quiet)
    if as_json:
        options.say(json.dumps(outcome, indent=1))


@bundled.command("list", cls=LightCommand)
def list_() -> None:
    """List the bundled models."""
    from neuroscope import testbed

<<<<<<< HEAD
    printing.say("\n".join(f"testbed:{name}" for name in testbed.names()))
=======
    options.say("\n".join(f"testbed:{name}" for name in testbed.names()))


@bundled.command()
def certify(
    name: Annotated[str, typer.Argument(help="sd1 or sd1-natural.")] = "sd1",
    samples: Annotated[int, typer.Option(callback=values.whole(), help="Prompt pairs for each attribute.")] = 60,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write them: FILE.json, or a model card FILE.md.")] = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure where a bundled model keeps each attribute: readers, obedience, and flips under swapped prompts."""
    from neuroscope import testbed
    from neuroscope.core import storage
    from neuroscope.testbed.certificate import certify as measure

    choose("bundled pipeline", name, testbed.pipelines())
    if output is not None and output.suffix not in (".json", ".md"):
        raise InvalidFile(f"{output} is neither FILE.json nor FILE.md; a certificate is written as one of these")
    opening.check_output(output)
    certificate = measure(name, samples=samples, quiet=quiet)
    if output is not None:
        storage.write_beside(output, (certificate.to_card() if output.suffix == ".md" else certificate.to_json()).encode())
    options.say(certificate.to_json() if as_json else certificate.to_text())


@bundled.command()
def train(
    name: Annotated[str, typer.Argument(help="clip, sd1-natural or sd1.")],
    output_dir: options.OutputFolder = Path("runs"),
    quiet: options.Quiet = False,
) -> None:
    """Train a bundled model from nothing. A run that was stopped goes on from its checkpoints."""
    from neuroscope.core import storage
    from neuroscope.testbed.training.recipes import MODELS
    from neuroscope.testbed.training.recipes import train as run

    choose("bundled model", name, MODELS)
    storage.check_writable_folder(output_dir)
    options.say(f"wrote {run(name, output_dir, quiet)}")
>>>>>>> cli
