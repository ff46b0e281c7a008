"""How commands are declared: options that belong together are one parameter, and models are imported only when a command runs.

A group of options is a frozen dataclass of typer options with a `panel`, its title in `--help`:

    @dataclass(frozen=True)
    class Size:
        panel: ClassVar[str] = "Size"
        height: Annotated[int | None, typer.Option(help="Pixels.")] = None

A command that takes `size: Size` has the option `--height`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Annotated, Any, TypeGuard, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from neuroscope.cli import interrupts

#: Letters of a sentence, at most.
_SENTENCE = 1000


class LightCommand(TyperCommand):
    """A command that needs no model. Its help shows each group of options under the group's title."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments, the command's own options, and the groups of options."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                own = "Arguments" if param.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(param, "rich_help_panel", None) or own, []).append(record)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence of its help, whole, however long the line of the list of commands is."""
        return super().get_short_help_str(max(limit, _SENTENCE))

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; Ctrl-C raises KeyboardInterrupt from here on."""
        with interrupts.Raised():
            return super().invoke(ctx)


class ModelCommand(LightCommand):
    """A command that needs models: what takes long is imported before it runs, and diffusers and transformers are kept quiet."""

    def invoke(self, ctx: Any) -> Any:
        """Imports the libraries and what runs models, then runs the command."""
        from neuroscope.pipeline.quiet import quiet_libraries

        import_module("neuroscope.pipeline.graph")
        with quiet_libraries():
            return super().invoke(ctx)


class App(typer.Typer):
    """A typer application whose commands take groups of options."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = ModelCommand, **settings: Any) -> Callable[..., Any]:
        """Adds a command; see `typer.Typer.command`."""
        add = super().command(name, cls=cls, **settings)
        return lambda function: add(spread(function))


def spread(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command's function as typer reads it: with the options of its groups, instead of the groups.

    Raises:
        ValueError: two of its options have one name.
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if _is_group(kind)}
    found: list[inspect.Parameter] = []
    for name, each in inspect.signature(function).parameters.items():
        own = each.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        found += _options(groups[name]) if name in groups else [own]

    @functools.wraps(function)
    def call(**given: Any) -> Any:
        made = {name: kind(**{each.name: given.pop(each.name) for each in fields(kind)}) for name, kind in groups.items()}
        return function(**given, **made)

    vars(call)["__signature__"] = inspect.Signature(found)
    call.__annotations__ = {each.name: each.annotation for each in found}
    return call


def _is_group(kind: Any) -> TypeGuard[type]:
    return isinstance(kind, type) and is_dataclass(kind) and hasattr(kind, "panel")


def _options(group: Any) -> Iterator[inspect.Parameter]:
    """The options of a group, under its title."""
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        default = inspect.Parameter.empty if each.default is MISSING else each.default
        annotation = _under(_panel(group, each.name), hints[each.name])
        yield inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _panel(group: Any, name: str) -> str:
    """The title of the group in which an option stands first: one that another builds on keeps its own."""
    found: str = next(kind.panel for kind in reversed(group.__mro__) if name in vars(kind).get("__annotations__", {}))
    return found


def _under(panel: str, annotation: Any) -> Any:
    """An option's annotation with the title under which `--help` shows it."""
    kind, option = get_args(annotation)
    titled = copy.copy(option)
    titled.rich_help_panel = panel
    return Annotated[kind, titled]
