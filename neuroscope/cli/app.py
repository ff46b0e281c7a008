"""The console script: gathers the commands and turns users' mistakes into one line and exit status 2."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from typing import Annotated

import diffusers
import transformers
import typer

from neuroscope import _interrupts
from neuroscope.cli import concepts, editing, generation, inspection, localization, reporting, showcase
from neuroscope.core import distribution
from neuroscope.core.errors import NeuroscopeError
from neuroscope.generation.batches import out_of_memory

#: Why standard output could not be written.
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
#: What typer raises for a command line that it cannot read; typer keeps this base to itself.
_Unreadable: type[Exception] = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")

app = typer.Typer(
    name="neuroscope",
    help="Find, switch off and plot what a text-to-image diffusion model knows, neuron by neuron.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (inspection, concepts, localization, editing, generation, reporting, showcase):
    module.register(app)


@app.callback(invoke_without_command=True)
def choose_command(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False
) -> None:
    """Find, switch off and plot what a text-to-image diffusion model knows, neuron by neuron."""
    if version:
        typer.echo(f"neuroscope {distribution.version()}")
        raise typer.Exit
    showcase.help_without_command(ctx)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; exits with 2 and one clear line on a user's mistake, and with 130 on an interrupt."""
    try:
        with _interrupts.Raised():
            status = _run(arguments)
    except KeyboardInterrupt:
        status = _interrupts.STATUS
    if status == _interrupts.STATUS:
        _complain("interrupted")
    sys.exit(status)


def _run(arguments: list[str] | None) -> int:
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _say_warning  # type: ignore[assignment]
        try:
            status = app(arguments, prog_name="neuroscope", standalone_mode=False)
            sys.stdout.flush()
        except NeuroscopeError as error:
            return _complain(str(error))
        except _Unreadable as error:
            said = error.format_message().rstrip(".")  # type: ignore[attr-defined]
            return _complain(f"{said}; see `{_command_of(error)} --help`")
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return _complain("the memory does not hold this; give a smaller --height and --width, or fewer at a time")
        except OSError as error:
            return _closed_output(error)
    return int(status or 0)


def _complain(text: str) -> int:
    """Prints one line on standard error, if there is one; returns the status of a user's mistake."""
    with contextlib.suppress(OSError):
        typer.echo(f"neuroscope: {' '.join(text.split())}", err=True)
    return 2


def _command_of(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "neuroscope"


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
        _complain(f"standard output cannot be written: {error.strerror}")
    return 1


def _say_warning(message: Warning | str, category: type[Warning], *_where: object) -> None:
    if issubclass(category, UserWarning):
        _complain(f"warning: {message}")
