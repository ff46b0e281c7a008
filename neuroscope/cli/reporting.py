"""The command that writes a page: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroscope.cli import opening, options


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(report)


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
