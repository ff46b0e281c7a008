"""The application: gathers the commands and turns users' mistakes into one line and exit status 2."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from typing import Annotated, cast

import typer

import neuroscope
from neuroscope.cli import concepts, editing, generation, inspection, localization, showcase
from neuroscope.cli.commands import App
from neuroscope.core.errors import NeuroscopeError

#: Why standard output could not be written.
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
#: What typer raises for a command line that it cannot read; typer keeps this base to itself.
_Unreadable: type[Exception] = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")

app = App(
    name="neuroscope",
    help="Find, switch off and plot what a text-to-image diffusion model knows, neuron by neuron.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (inspection, concepts, localization, editing, generation, showcase):
    module.register(app)


@app.callback(invoke_without_command=True)
def choose_command(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False
) -> None:
    """Find, switch off and plot what a text-to-image diffusion model knows, neuron by neuron."""
    if version:
        typer.echo(f"neuroscope {neuroscope.__version__}")
        raise typer.Exit
    showcase.help_without_command(ctx)


def run(arguments: list[str] | None) -> int:
    """Runs a command; returns its exit status, after one clear line where it is not 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _say_warning
        try:
            status = app(arguments, prog_name="neuroscope", standalone_mode=False)
            sys.stdout.flush()
        except NeuroscopeError as error:
            return complain(str(error))
        except _Unreadable as error:
            said = cast(typer.BadParameter, error).format_message().rstrip(".")
            return complain(f"{said}; see `{_command_of(error)} --help`")
        except (MemoryError, RuntimeError) as error:
            return _full_memory(error)
        except OSError as error:
            return _closed_output(error)
    return int(status or 0)


def complain(text: str) -> int:
    """Prints one line on standard error, if there is one; returns the status of a user's mistake."""
    with contextlib.suppress(OSError):
        typer.echo(f"neuroscope: {' '.join(text.split())}", err=True)
    return 2


def _command_of(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "neuroscope"


def _full_memory(error: MemoryError | RuntimeError) -> int:
    """The status where the memory is full; raises `error` where it was something else."""
    from neuroscope.generation.batches import out_of_memory

    if not out_of_memory(error):
        raise error
    return complain("the memory does not hold this; give a smaller --height and --width, or fewer at a time")


def _closed_output(error: OSError) -> int:
    """The status where standard output was closed (as by `head`) or is full; raises `error` where it was something else."""
    try:
        sys.stdout.flush()
    except OSError as found:
        error = found
    if error.filename is not None or error.errno not in _UNWRITABLE:  # files of results have errors of their own
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends
    if not isinstance(error, BrokenPipeError):
        complain(f"standard output cannot be written: {error.strerror}")
    return 1


def _say_warning(message: Warning | str, category: type[Warning], *_where: object, **_more: object) -> None:
    if issubclass(category, UserWarning):
        complain(f"warning: {message}")
