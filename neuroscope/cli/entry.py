"""The console script's `main`, which is there before anything is imported that takes time."""

from __future__ import annotations

import sys

from neuroscope.cli import interrupts


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; exits with 2 and one clear line on a user's mistake, and with 130 on an interrupt."""
    interrupts.leave_at_once()
    from neuroscope.cli.app import complain, run

    try:
        status = run(arguments)
    except KeyboardInterrupt:
        status = interrupts.STATUS
    if status == interrupts.STATUS:
        complain("interrupted")
    sys.exit(status)
