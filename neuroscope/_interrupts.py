"""Ctrl-C at the command line, from the first import on.

Importing torch and diffusers takes seconds, and what Ctrl-C raises inside an import would be printed as a traceback, or swallowed.
While commands run, Ctrl-C is an ordinary KeyboardInterrupt, so that hooks and temporary files are taken away. This module imports
only what Python has imported itself.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import NoReturn

STATUS = 130
_SCRIPTS = ("neuroscope", "neuroscope.exe", "neuroscope-script.py")


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ends the process at once: nothing is open yet, or all is closed."""
    os.write(2, b"neuroscope: interrupted\n")
    os._exit(STATUS)


def _is_command() -> bool:
    """Whether this process is the console script or `python -m neuroscope`, rather than a user's own program."""
    if sys.argv and sys.argv[0] == "-m":
        return any(here == "-m" and what == "neuroscope" for here, what in zip(sys.orig_argv, sys.orig_argv[1:], strict=False))
    return bool(sys.argv) and sys.argv[0].replace("\\", "/").rpartition("/")[2] in _SCRIPTS


class Raised:
    """A block in which Ctrl-C raises KeyboardInterrupt, where this module had changed that."""

    def __enter__(self) -> None:
        self._changed = signal.getsignal(signal.SIGINT) is _leave
        if self._changed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._changed:
            signal.signal(signal.SIGINT, _leave)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    try:  # noqa: SIM105 - contextlib takes its time to import
        signal.signal(signal.SIGINT, _leave)
    except ValueError:  # not the main thread, which alone is interrupted
        pass
