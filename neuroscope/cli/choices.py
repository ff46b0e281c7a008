"""The words that an option takes, shown in its help and completed by the shell, without importing a model's libraries.

An unknown word is refused by the package itself, with near names. Methods and metrics are found by reading the package's files.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

DEVICES = ("auto", "cuda", "cuda:N", "mps", "cpu")
DTYPES = ("auto", "float16", "bfloat16", "float32")
OFFLOADS = ("none", "model", "sequential")
ROLES = ("key", "value", "query", "heads", "output", "feedforward", "pooled", "context")
TOKENS = ("last", "subject", "eos", "all")
EDITED_ROLES = ("key", "value", "pooled", "context")
EDITED_TOKENS = ("subject", "eos", "padding", "all")
ROWS = ("conditional", "all")
PER = ("all", "layer", "site")
SHARES = ("latent", "image")
FORMATS = ("diffusers", "kohya")
FILE_DTYPES = ("float32", "float16", "bfloat16")
EXECUTORS = ("local", "ray")
VIEWS = ("map", "sorted", "top", "volcano")
CONTEXTS = ("paper", "talk")
STYLES = ("stipple", "hatch", "ribbon", "mosaic", "nocturne")
_PACKAGE = Path(__file__).parents[1]


def option(words: tuple[str, ...], *flags: str, **settings: Any) -> Any:
    """An option that takes one of these words, as `typer.Option`."""
    return typer.Option(*flags, metavar="|".join(words), autocompletion=_completing(lambda: words), **settings)


def method(*bases: str, **settings: Any) -> Any:
    """An option that takes a method, as `typer.Option`; `bases` name the classes that it may be of."""
    return typer.Option(autocompletion=_completing(lambda: methods(*bases)), **settings)


def metric(**settings: Any) -> Any:
    """An option that takes a metric, as `typer.Option`."""
    return typer.Option(autocompletion=_completing(metrics), **settings)


def model(*flags: str, **settings: Any) -> Any:
    """An option that takes a model, as `typer.Option`."""
    return typer.Option(*flags, autocompletion=_completing(models), **settings)


def methods(*bases: str) -> tuple[str, ...]:
    """The names of the package's methods of these kinds, in alphabetical order."""
    kinds = {each.name: {base.id for base in map(_plain, each.bases) if base} for each in _classes("attribution", "localization")}
    found = set(bases)
    while more := {name for name, parents in kinds.items() if parents & found} - found:
        found |= more
    return tuple(sorted(name for name in found - set(bases) if not name.startswith("_")))


def metrics() -> tuple[str, ...]:
    """The names of the package's metrics, in alphabetical order: public dataclasses that are called."""
    return tuple(sorted(each.name for each in _classes("metrics", "testbed") if _is_metric(each)))


def models() -> tuple[str, ...]:
    """The bundled pipelines, as `--model` takes them."""
    folders = (_PACKAGE / "testbed" / "weights").glob("*/model_index.json")
    return tuple(sorted(f"testbed:{each.parent.name}" for each in folders))


def _completing(words: Callable[[], tuple[str, ...]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words() if word.startswith(incomplete)]

    return complete


def _classes(*rooms: str) -> Iterator[ast.ClassDef]:
    """The classes that some rooms of the package define."""
    for path in sorted(path for room in rooms for path in (_PACKAGE / room).rglob("*.py")):
        yield from (each for each in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(each, ast.ClassDef))


def _plain(base: ast.expr) -> ast.Name | None:
    """The class of a base that may have parameters, as `Localization[T]` has."""
    inner = base.value if isinstance(base, ast.Subscript) else base
    return inner if isinstance(inner, ast.Name) else None


def _is_metric(kind: ast.ClassDef) -> bool:
    is_called = any(isinstance(each, ast.FunctionDef) and each.name == "__call__" for each in kind.body)
    return is_called and not kind.name.startswith("_") and any("dataclass" in ast.unparse(each) for each in kind.decorator_list)
