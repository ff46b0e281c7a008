"""Checks of single options, and which options a command line gave."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from neuroscope.core.errors import InvalidInput

#: Of images and prompts that one command makes or prints; far above any sweep that ends.
MOST = 100_000
SEED_RANGE = {"least": -(2**63), "most": 2**64 - 1}


def whole(least: float = 1, most: float = MOST) -> Callable[..., Any]:
    """A callback that refuses numbers outside a range."""

    def check(flag: str, value: int) -> int:
        from neuroscope.core import checks

        return checks.whole(flag, value, least=least, most=most)

    return _callback(check)


def finite(least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> Callable[..., Any]:
    """A callback that refuses NaN, infinity and numbers outside a range."""

    def check(flag: str, value: float) -> float:
        from neuroscope.core import checks

        return checks.finite(flag, value, least=least, most=most, above=above)

    return _callback(check)


def rate() -> Callable[..., Any]:
    """A callback that refuses what is neither a positive number nor the word measure."""

    def check(flag: str, value: str) -> str:
        from neuroscope.core import checks
        from neuroscope.generation.forecast import MEASURE

        if value != MEASURE:
            try:
                checks.finite(flag, float(value), above=0)
            except ValueError as error:
                raise InvalidInput(f"{flag}={value} is no rate; give NFE a second above 0, such as 20, or {MEASURE}") from error
        return value

    return _callback(check)


def side() -> Callable[..., Any]:
    """A callback that refuses what is no side of an image, in pixels."""

    def check(flag: str, value: int) -> int:
        from neuroscope.core import checks
        from neuroscope.generation.arguments import LARGEST_SIDE

        return checks.whole(flag, value, least=1, most=LARGEST_SIDE)

    return _callback(check)


def text() -> Callable[..., Any]:
    """A callback that refuses an empty text."""

    def check(flag: str, value: str) -> str:
        from neuroscope.core import checks

        return checks.text(flag, value, "or leave the option out")

    return _callback(check)


def texts() -> Callable[..., Any]:
    """A callback that refuses a value given twice, and text that is none."""

    def check(flag: str, values: list[Any]) -> list[Any]:
        from neuroscope.core import checks

        checks.distinct(f"values of {flag}", values)
        checks.strings(flag, [str(each) for each in values])
        return values

    return _callback(check)


def files() -> Callable[..., Any]:
    """A callback that refuses a file given twice, under whatever name."""

    def check(flag: str, paths: list[Path]) -> list[Path]:
        found = [os.path.realpath(path) for path in paths]
        if twice := [path for number, path in enumerate(paths) if found[number] in found[:number]]:
            raise InvalidInput(f"{flag} {twice[0]} is given twice; give each file once")
        return paths

    return _callback(check)


def _callback(check: Callable[[str, Any], Any]) -> Callable[[typer.Context, typer.CallbackParam, Any], Any]:
    """A callback that checks the value of an option that has one, but not while the shell completes a line."""

    def callback(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        return value if value is None or ctx.resilient_parsing else check(flag_of(param), value)

    return callback


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
