"""Checks of what users give: numbers, lists, seeds and objects. Each refusal says what to write instead."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from neuroscope._errors import InvalidInput

Kind = TypeVar("Kind")


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
        raise InvalidInput(f"{name}={value!r} is no number; give one{f' of {allowed}' if allowed else ''}")
    if not math.isfinite(float(value)):
        raise InvalidInput(f"{name}={value} is not finite; give a number{f' of {allowed}' if allowed else ', such as 1.0'}")
    number = float(value)
    if not (least <= number <= most and number > above):
        raise InvalidInput(f"{name}={value} is not allowed; give {allowed}")
    return number


def whole(name: str, value: Any, *, least: int = 1, most: float = math.inf) -> int:
    """`value` as an int, if it is a whole number from `least` to `most`.

    Raises:
        InvalidInput: it is not; the message names the range.
    """
    allowed = f"{least} or more" if most == math.inf else f"{least} to {most:g}"
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InvalidInput(f"{name}={value!r} is no whole number; give {allowed}")
    number = int(value)
    if not least <= number <= most:
        raise InvalidInput(f"{name}={value} is not allowed; give {allowed}")
    return number


def strings(name: str, values: Any) -> tuple[str, ...]:
    """Prompts or other texts as a tuple.

    Raises:
        InvalidInput: one string where a list is meant, something else than strings, or an empty string.
    """
    if isinstance(values, str):
        raise InvalidInput(f"{name} are a list of strings, not the one string {values!r}; write [{values!r}]")
    if not isinstance(values, Iterable):
        raise InvalidInput(f"{name} are a list of strings, not {values!r}")
    given = tuple(values)
    for each in given:
        if not isinstance(each, str):
            raise InvalidInput(f"{name} are a list of strings, and {each!r} is none; give text in quotes")
    return given


def seeds(values: Any) -> tuple[int, ...]:
    """Seeds of initial noise as a tuple of ints that a generator takes.

    Raises:
        InvalidInput: a single number, no seed at all, something else than whole numbers, or one that no generator takes.
    """
    if isinstance(values, Integral) and not isinstance(values, bool):
        raise InvalidInput(f"seeds={values}: write [{values}] for this one seed, or range({values}) for so many")
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidInput(f"seeds={values!r} are no seeds; give whole numbers, such as range(4)")
    given = tuple(whole("a seed", each, least=-(2**63), most=2**64 - 1) for each in values)
    if not given:
        raise InvalidInput("there are no seeds; give at least one, such as range(4)")
    return given


def instance(name: str, value: Any, kind: type[Kind] | tuple[type, ...], example: str) -> Kind:
    """`value`, if it is an object of this kind.

    Raises:
        InvalidInput: it is a class (parentheses are missing), a string (a name instead of the object), or something else.
    """
    if isinstance(value, kind):
        return value  # type: ignore[return-value]
    if inspect.isclass(value):
        raise InvalidInput(f"{name} is the class {value.__name__}, not an object of it; write {value.__name__}(), with parentheses")
    if isinstance(value, str):
        raise InvalidInput(f"{name} is the string {value!r}, not an object; write {example}")
    raise InvalidInput(f"{name} is a {type(value).__name__}, which does not fit; give one such as {example}")


def several(name: str, values: Any, kind: type[Kind] | tuple[type, ...], example: str) -> tuple[Kind, ...]:
    """Objects of one kind as a tuple; one object alone is taken as a list of one.

    Raises:
        InvalidInput: as `instance`, for each.
    """
    if isinstance(values, kind):
        return (values,)  # type: ignore[return-value]
    if inspect.isclass(values) or isinstance(values, str) or not isinstance(values, Iterable):
        return (instance(name, values, kind, example),)
    return tuple(instance(f"one of {name}", each, kind, example) for each in values)


def distinct(name: str, values: Sequence[Any]) -> None:
    """Raises InvalidInput where a value is given twice."""
    if twice := [each for number, each in enumerate(values) if each in values[:number]]:
        raise InvalidInput(f"{twice[0]!r} is given twice among the {name}; give each once")


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
    return values
