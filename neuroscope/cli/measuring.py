"""Metrics as command lines name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neuroscope.cli import methods
from neuroscope.core.errors import InvalidInput

if TYPE_CHECKING:
    from neuroscope.cli.options import ModelOptions
    from neuroscope.metrics.metric import Metric


def metric(text: str, model: ModelOptions) -> Any:
    """The metric of `--metric`, written as in Python, such as "ClipScore(text='the style of Van Gogh')".

    Raises:
        InvalidInput: it is none, or one of the testbed's images for another model.
    """
    from neuroscope.testbed import Reader

    made = methods.build("metric", text, methods.metrics())
    if isinstance(made, Reader):
        _expect_bundled("Reader", model)
    return made


def reader(text: str, model: ModelOptions) -> Metric:
    """The testbed's exact reader of --read ATTRIBUTE=VALUE; raises InvalidInput for other text, and for another model."""
    from neuroscope.testbed import Reader
    from neuroscope.testbed.world import ATTRIBUTES

    attribute, _, value = text.partition("=")
    if not value or attribute not in ATTRIBUTES:
        raise InvalidInput(f"--read {text!r} is not ATTRIBUTE=VALUE; attributes: {', '.join(ATTRIBUTES)}")
    _expect_bundled("--read", model)
    return Reader(attribute, value)


def _expect_bundled(what: str, model: ModelOptions) -> None:
    if not model.bundled:
        raise InvalidInput(f"{what} works on the testbed's images, not on {model.model}; use --clip TEXT")
