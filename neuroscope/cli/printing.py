"""What commands print on standard output."""

from __future__ import annotations

import json
from typing import Any

import typer


def report(facts: Any, text: str, as_json: bool) -> None:
    """Prints a command's result, as text or as JSON."""
    say(json.dumps(facts, indent=1) if as_json else text)


def say(text: str) -> None:
    """Prints to standard output, also names of files that are no text."""
    typer.echo(text.encode(errors="backslashreplace").decode())
