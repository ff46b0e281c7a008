"""Commands of the bundled models: demo, and testbed list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from neuroscope.cli import choices, options
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
    style: Annotated[str, choices.option(choices.STYLES, help="The style to find and switch off.")] = "stipple",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Find a style's neurons in the bundled model, switch them off, and show what changed. Two and a half minutes on two cores."""
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

    options.say("\n".join(f"testbed:{name}" for name in testbed.names()))
