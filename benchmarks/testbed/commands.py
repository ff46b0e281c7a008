"""The commands: train a bundled model, and certify what it holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import diffusers
import transformers
import typer

from neuroscope import testbed
from neuroscope.core import checks, storage
from neuroscope.core.errors import InvalidFile, NeuroscopeError, choose

PROGRAM = "python -m benchmarks.testbed"
_INTERRUPTED = 130  # typer's status after Ctrl-C
#: What typer raises for a command line that it cannot read; typer keeps this base to itself.
_Unreadable: Any = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")

app = typer.Typer(help="Make the bundled models anew, and measure what they hold.", pretty_exceptions_enable=False, rich_markup_mode=None)
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]


def _check_samples(samples: int) -> int:
    return checks.whole("--samples", samples, most=100_000)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="clip, sd1-natural, sd1, pixart-natural or pixart.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="The folder to write to.")] = Path("runs"),
    quiet: Quiet = False,
) -> None:
    """Train a bundled model from nothing. A run that was stopped goes on from its checkpoints."""
    from benchmarks.testbed import recipes

    choose("bundled model", name, recipes.MODELS)
    storage.check_writable_folder(output_dir)
    typer.echo(f"wrote {recipes.train(name, output_dir, quiet)}")


@app.command()
def certify(
    name: Annotated[str, typer.Argument(help="A bundled pipeline: sd1, sd1-natural, pixart or pixart-natural.")] = "sd1",
    samples: Annotated[int, typer.Option(callback=_check_samples, help="Prompt pairs for each attribute.")] = 60,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write them: FILE.json, or a model card FILE.md.")] = None,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure where a bundled model keeps each attribute: readers, obedience, and flips under swapped prompts."""
    from benchmarks.testbed import certificate

    choose("bundled pipeline", name, testbed.pipelines())
    if output is not None:
        if output.suffix not in (".json", ".md"):
            raise InvalidFile(f"{output} is neither FILE.json nor FILE.md; a certificate is written as one of these")
        storage.check_writable(output)
    measured = certificate.certify(name, samples=samples, quiet=quiet)
    if output is not None:
        storage.write_beside(output, (measured.to_card() if output.suffix == ".md" else measured.to_json()).encode())
    typer.echo(measured.to_json() if as_json else measured.to_text())


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; exits with 2 and one clear line on a user's mistake, and with 130 on an interrupt."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        status = int(app(arguments, prog_name=PROGRAM, standalone_mode=False) or 0)
    except NeuroscopeError as error:
        _leave(str(error), 2)
    except _Unreadable as error:
        said = error.format_message().rstrip(".")
        _leave(f"{said}; see `{PROGRAM} --help`", 2)
    if status == _INTERRUPTED:
        _leave("interrupted", status)
    sys.exit(status)


def _leave(text: str, status: int) -> NoReturn:
    """Prints one line on standard error, and ends with a status."""
    typer.echo(f"{PROGRAM}: {' '.join(text.split())}", err=True)
    sys.exit(status)
