"""The command line. Each command is a few lines over public functions."""

from neuroscope.cli.app import main

__all__ = ["main"]
