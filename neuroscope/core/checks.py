"""Checks of what users give: numbers, lists, seeds and objects. Each refusal says what to write instead."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from neuroscope.core.errors import InvalidInput

Kind = TypeVar("Kind")
_LONGEST = 80


def shown(value: Any) -> str:
    """A value in a message: its repr, on one line and cut short."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__} of many digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def finite(name: str, value: Any, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> float:
    """`value` as a float, if it is a finite number from `least` to `most` and greater than `above`.

    Raises:
        InvalidInput: it is not; the message names the range.
    """
    allowed = " and ".join(
        [f"at least {least:g}"] * (least > -math.inf)
        + [f"more than {above:g}"] * (above > -math.inf)
        + [f"at most {most:g}"] * (most < math.inf)
    )
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidInput(f"{name}={shown(value)} is no number; give one{f' of {allowed}' if allowed else ''}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInput(f"{name}={shown(value)} is not finite; give a number{f' of {allowed}' if allowed else ', such as 1.0'}")
    if not (least <= number <= most and number > above):
        raise InvalidInput(f"{name}={value} is not allowed; give {allowed}")
    return number


def whole(name: str, value: Any, *, least: float = 1, most: float = math.inf) -> int:
    """`value` as an int, if it is a whole number from `least` to `most`.

    Raises:
        InvalidInput: it is not; the message names the range.
    """
    allowed = f"{least} or more" if most == math.inf else f"{least} to {most}"
    allowed = "one such as 1" if least == -math.inf else allowed
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InvalidInput(f"{name}={shown(value)} is no whole number; give {allowed}")
    number = int(value)
    if not least <= number <= most:
        raise InvalidInput(f"{name}={shown(number)} is not allowed; give {allowed}")
    return number


def flag(name: str, value: Any) -> bool:
    """`value`, if it is True or False; raises InvalidInput otherwise."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{name}={shown(value)} is neither True nor False; give one of them")
    return value


def text(name: str, value: Any, example: str = "such as 'Van Gogh'") -> str:
    """`value`, if it is a string that says something.

    Raises:
        InvalidInput: it is no string, empty or blank, or holds half a character.
    """
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {shown(value)}, which is no text; give a string, {example}")
    if not value.strip():
        raise InvalidInput(f"{name} is empty; give a string, {example}")
    return _encodable(name, value)


def path(name: str, value: Any) -> Path:
    """`value` as a path.

    Raises:
        InvalidInput: it is no path, or one that no file can have.
    """
    if not isinstance(value, str | os.PathLike):
        raise InvalidInput(f"{name} is {shown(value)}, which is no path; give a string or a Path")
    found = os.fspath(value)
    if not isinstance(found, str) or not found or "\0" in found:
        raise InvalidInput(f"{name} is {shown(found)}, which no file can be called; give another path")
    return Path(found)


def strings(name: str, values: Any) -> tuple[str, ...]:
    """Prompts or other texts as a tuple.

    Raises:
        InvalidInput: one string where a list is meant, something else than strings, or half a character.
    """
    if isinstance(values, str):
        raise InvalidInput(f"{name} are a list of strings, not the one string {values!r}; write [{values!r}]")
    if inspect.isclass(values) or not isinstance(values, Iterable):
        raise InvalidInput(f"{name} are a list of strings, not {shown(values)}; write one such as ['a red star']")
    given = tuple(values)
    for each in given:
        if not isinstance(each, str):
            raise InvalidInput(f"{name} are a list of strings, and {shown(each)} is none; give text in quotes")
        _encodable(f"one of {name}", each)
    return given


def layers(name: str, values: Any) -> tuple[int, ...]:
    """Numbers of layers as a tuple; one number alone is taken as a list of one.

    Raises:
        InvalidInput: a string, scores of layers instead of layers, or something else than whole numbers.
    """
    if isinstance(values, Integral) and not isinstance(values, bool):
        return (int(values),)
    if hasattr(values, "by_prompt") or hasattr(values, "by_layer"):
        best = "top(1)" if hasattr(values, "by_prompt") else "by_layer().top(1)"
        raise InvalidInput(f"{name} is a {type(values).__name__}, not numbers of layers; write the best layers of it, scores.{best}")
    if isinstance(values, bool | str) or inspect.isclass(values) or not isinstance(values, Iterable):
        number = f"; write {values}" if isinstance(values, str) and values.isdecimal() else "; write one such as [8, 9]"
        raise InvalidInput(f"{name}={shown(values)} is no number of a layer, nor a list of them{number}")
    return tuple(whole(f"one of {name}", each, least=-math.inf) for each in values)


def seeds(values: Any, use: str = "") -> tuple[int, ...]:
    """Seeds of initial noise as a tuple of ints that a generator takes; `use` says what they are for, such as " to evaluate".

    Raises:
        InvalidInput: a single number, no seed at all, something else than whole numbers, or one that no generator takes.
    """
    if isinstance(values, Integral) and not isinstance(values, bool):
        count = shown(values)
        raise InvalidInput(f"seeds={count}: write [{count}] for this one seed, or range({count}) for so many")
    if isinstance(values, str) or inspect.isclass(values) or not isinstance(values, Iterable):
        raise InvalidInput(f"seeds={shown(values)} are no seeds; give whole numbers, such as range(4)")
    given = tuple(seed("a seed", each) for each in values)
    if not given:
        raise InvalidInput(f"there are no seeds{use}; give at least one, such as range(4)")
    return given


def seed(name: str, value: Any) -> int:
    """`value` as an int, if torch's generators take it as a seed; raises InvalidInput otherwise."""
    return whole(name, value, least=-(2**63), most=2**64 - 1)


def instance(name: str, value: Any, kind: type[Kind] | tuple[type, ...], example: str) -> Kind:
    """`value`, if it is an object of this kind.

    Raises:
        InvalidInput: it is a class (parentheses are missing), a string (a name instead of the object), or something else.
    """
    if inspect.isclass(value):
        raise InvalidInput(f"{name} is the class {value.__name__}, not an object of it; write {value.__name__}(...), with parentheses")
    if isinstance(value, kind):
        return cast("Kind", value)
    if isinstance(value, str):
        raise InvalidInput(f"{name} is the string {shown(value)}, not an object; write {example}")
    raise InvalidInput(f"{name} is a {type(value).__name__}, which does not fit; give one such as {example}")


def several(name: str, values: Any, kind: type[Kind] | tuple[type, ...], example: str) -> tuple[Kind, ...]:
    """Objects of one kind as a tuple; one object alone is taken as a list of one.

    Raises:
        InvalidInput: as `instance`, for each.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if inspect.isclass(values) or isinstance(values, (*kinds, str)) or not isinstance(values, Iterable):
        return (instance(name, values, kind, example),)
    return tuple(instance(f"one of {name}", each, kind, example) for each in values)


def distinct(name: str, values: Sequence[Any]) -> None:
    """Raises InvalidInput where a value is given twice."""
    if twice := [each for number, each in enumerate(values) if each in values[:number]]:
        raise InvalidInput(f"{twice[0]!r} is given twice among the {name}; give each once")


def fit_defaults(options: Any, *free: str) -> None:
    """Checks that every option of a frozen dataclass is of the kind of its default, and keeps plain numbers and tuples.

    Args:
        options: the object, in its `__post_init__`.
        free: options of another kind, which the class checks itself.

    Raises:
        InvalidInput: NaN or infinity, something else than a number, a truth value for a number, a number for a truth value, or
            something else than strings.
    """
    for option in dataclasses.fields(options):
        if option.name not in free:
            object.__setattr__(options, option.name, _like(option.name, getattr(options, option.name), option.default))


def _like(name: str, value: Any, default: Any) -> Any:
    """`value`, checked to be of the kind of `default`."""
    if isinstance(default, bool):
        return flag(name, value)
    if isinstance(default, int):
        return whole(name, value, least=-math.inf)
    if isinstance(default, float):
        number = finite(name, value)
        return value if type(value) is int else number
    if not isinstance(default, tuple):
        return value
    if default and isinstance(default[0], float):
        return _interval(name, value)
    return value if isinstance(value, str) else strings(name, value)


def _interval(name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidInput(f"{name}={shown(value)} is not a part of the schedule; give two fractions in order, such as (0.0, 0.5)")
    return tuple(finite(f"one of {name}", each) for each in value)


def _encodable(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{name} holds a character that is none, {value!a}; write it in UTF-8") from None
    return value


def finite_tensor(name: str, values: Any, *axes: str) -> Tensor:
    """`values`, if it is a tensor of finite floating-point numbers with these axes, of which none is empty.

    Raises:
        InvalidInput: it is not; the message names the axes.
    """
    instance(name, values, Tensor, "torch.zeros(...)")
    shape = f"[{', '.join(axes)}]"
    if values.ndim != len(axes) or not values.numel():
        raise InvalidInput(f"{name} has shape {tuple(values.shape)}; give {shape}")
    if not values.is_floating_point():
        raise InvalidInput(f"{name} holds {values.dtype}; give floating-point numbers")
    if not torch.isfinite(values).all():
        raise InvalidInput(f"{name} holds NaN or infinity; make it again from finite numbers, in a wider number format if they overflow")
    result: Tensor = values
    return result
