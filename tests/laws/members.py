"""Finding all members of a kind by importing the whole package, so that no law forgets one."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache

import neuroscope


def members(kind: type) -> list[type]:
    """The package's concrete classes of a kind, sorted by name."""
    modules()
    found = {each for child in kind.__subclasses__() for each in (child, *members(child))}
    ours = {each for each in found if each.__module__.startswith("neuroscope.") and not inspect.isabstract(each)}
    return sorted(ours, key=lambda each: each.__name__)


def methods_in(room: str) -> list[type]:
    """The dataclasses of a room that can be called, such as metrics, which have no common base; sorted by name."""
    inside = [module for module in modules() if module.__name__.startswith(f"neuroscope.{room}.")]
    found = {each for module in inside for each in _public_classes(module.__name__) if is_dataclass(each) and "__call__" in vars(each)}
    return sorted(found, key=lambda each: each.__name__)


@cache
def modules() -> list:
    """All modules of the package, imported."""
    names = [each.name for each in pkgutil.walk_packages(neuroscope.__path__, "neuroscope.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def _public_classes(name: str) -> Iterator[type]:
    for each in vars(importlib.import_module(name)).values():
        if isinstance(each, type) and each.__module__ == name and not each.__name__.startswith("_"):
            yield each
