"""Loading bundled models without a word from the libraries that load them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside the block diffusers and transformers show errors alone, and no progress bars; then what they showed before."""
    import diffusers
    import transformers

    logs = [each.utils.logging for each in (diffusers, transformers)]
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            (log.enable_progress_bar if bars else log.disable_progress_bar)()
