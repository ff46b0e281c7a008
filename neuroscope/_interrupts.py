"""Ctrl-C at the command line, from the first import on.

Importing torch and diffusers takes seconds, and what Ctrl-C raises inside an import would be printed as a traceback, or swallowed.
While commands run, Ctrl-C is an ordinary KeyboardInterrupt, so that hooks and temporary files are taken away.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
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
    return bool(sys.argv) and os.path.basename(sys.argv[0]) in _SCRIPTS  # noqa: PTH119 - pathlib is not imported this early


@contextmanager
def raised() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt, where this module had changed that."""
    if signal.getsignal(signal.SIGINT) is not _leave:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _leave)


if (
    _is_command()
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _leave)
