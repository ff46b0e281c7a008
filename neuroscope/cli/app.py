"""The console script: gathers the commands and turns users' mistakes into one line and exit status 2."""

from __future__ import annotations

import sys
import warnings

import diffusers
import transformers
import typer

from neuroscope._errors import NeuroscopeError
from neuroscope.cli import concepts, editing, generation, inspection, localization, reporting, showcase

app = typer.Typer(
    name="neuroscope",
    help="Find, switch off and plot what a text-to-image diffusion model knows, neuron by neuron.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (inspection, concepts, localization, editing, generation, reporting, showcase):
    module.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; exits with 2 and one clear line on a user's mistake."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _say_warning  # type: ignore[assignment]
        try:
            app(arguments)
        except NeuroscopeError as error:
            typer.echo(f"neuroscope: {error}", err=True)
            sys.exit(2)


def _say_warning(message: Warning | str, category: type[Warning], *_where: object) -> None:
    if issubclass(category, UserWarning):
        typer.echo(f"neuroscope: warning: {message}", err=True)
