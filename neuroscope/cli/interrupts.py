"""Ctrl-C at the command line, from the first import on.

Importing torch and diffusers takes seconds, and what Ctrl-C raises inside an import would be printed as a traceback, or swallowed.
While commands run, Ctrl-C is an ordinary KeyboardInterrupt, so that hooks and temporary files are taken away. This module imports
only what takes no time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import NoReturn

STATUS = 130
_SCRIPTS = ("neuroscope", "neuroscope.exe", "neuroscope-script.py")


def leave_at_once() -> None:
    """Makes Ctrl-C end the process with one line, if this process is the command; another program's handler stays."""
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not the main thread, which alone is interrupted
            signal.signal(signal.SIGINT, _leave)


class Raised:
    """A block in which Ctrl-C raises KeyboardInterrupt, where `leave_at_once` had changed that."""

    def __enter__(self) -> None:
        self._changed = signal.getsignal(signal.SIGINT) is _leave
        if self._changed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._changed:
            signal.signal(signal.SIGINT, _leave)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ends the process at once: nothing is open yet, or all is closed."""
    os.write(2, b"neuroscope: interrupted\n")
    os._exit(STATUS)


def _is_command() -> bool:
    """Whether this process is the console script or `python -m neuroscope`, rather than a user's own program."""
    path = (sys.argv[0] if sys.argv else "").replace("\\", "/").split("/")
    return path[-1] in _SCRIPTS or path[-2:] == ["neuroscope", "__main__.py"]
