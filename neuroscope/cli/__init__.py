"""The command line. Each command is a few lines over public functions."""

from neuroscope.cli.entry import main

__all__ = ["main"]
