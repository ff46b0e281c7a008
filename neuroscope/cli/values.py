"""Checks of single options, and which options a command line gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import typer

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput

#: Of images and prompts that one command makes or prints; far above any sweep that ends.
MOST = 100_000
SEED_RANGE = {"least": -(2**63), "most": 2**64 - 1}


def whole(least: float = 1, most: float = MOST) -> Callable[..., Any]:
    """A callback that refuses numbers outside a range."""

    def check(param: typer.CallbackParam, value: int | None) -> int | None:
        return None if value is None else checks.whole(flag_of(param), value, least=least, most=most)

    return check


def finite(least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> Callable[..., Any]:
    """A callback that refuses NaN, infinity and numbers outside a range."""

    def check(param: typer.CallbackParam, value: float | None) -> float | None:
        return None if value is None else checks.finite(flag_of(param), value, least=least, most=most, above=above)

    return check


def text(param: typer.CallbackParam, value: str | None) -> str | None:
    """A callback that refuses an empty text."""
    return None if value is None else checks.text(flag_of(param), value, "or leave the option out")


def texts(param: typer.CallbackParam, values: list[Any] | None) -> list[Any] | None:
    """A callback that refuses a value given twice, and text that is none."""
    checks.distinct(f"values of {flag_of(param)}", values or [])
    checks.strings(flag_of(param), [str(each) for each in values or []])
    return values


def flag_of(param: Any) -> str:
    """How an option is written."""
    result: str = max(param.opts, key=len)
    return result


def given(ctx: typer.Context) -> set[str]:
    """The names of the parameters that stand on the command line."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def refuse_unused(ctx: typer.Context, reasons: Mapping[str, str]) -> None:
    """Raises InvalidInput for an option that was given and would be ignored.

    Args:
        ctx: the command line.
        reasons: by the name of a parameter that would be ignored, why.
    """
    for param in ctx.command.params:
        if param.name in reasons and param.name in given(ctx):
            raise InvalidInput(f"{flag_of(param)} would be ignored: {reasons[param.name]}; leave it out")
