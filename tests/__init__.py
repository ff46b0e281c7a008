"""The run-time type checker of the suite: beartype, with numpy's numbers among Python's as they are everywhere at run time."""

from typing import Any, Self, TypeVar

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

Checked = TypeVar("Checked")

#: `Self` cannot be resolved where methods are decorated one by one.
_HINTS = FrozenDict({Self: Any, bool: bool | np.bool_, int: int | np.integer, float: float | int | np.floating | np.integer})
_checked = beartype(conf=BeartypeConf(hint_overrides=_HINTS))


def typecheck(thing: Checked) -> Checked:
    """Checks what a function is given; functions that take a protocol without `runtime_checkable` stay unchecked."""
    try:
        return _checked(thing)
    except BeartypeDecorHintPep3119Exception:
        return thing
