"""The options that name several concepts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from neuroscope.cli import values
from neuroscope.cli.options.shared import ConceptOptions, ModelOptions
from neuroscope.core.errors import InvalidInput

if TYPE_CHECKING:
    from neuroscope.core.concepts import Concept


@dataclass(frozen=True)
class SeveralConcepts:
    """Concepts by name; a fact is given by its file."""

    panel: ClassVar[str] = "Concepts"
    style: Annotated[list[str] | None, typer.Option(callback=values.texts(), help="A style, by name; repeat for several.")] = None
    object_: Annotated[
        list[str] | None, typer.Option("--object", callback=values.texts(), help="An object, by name; repeat for several.")
    ] = None
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", callback=values.texts(), help="Any other attribute, by name; repeat for several.")
    ] = None
    concept: Annotated[
        list[Path] | None,
        typer.Option("--concept", callback=values.files(), help="A TOML file with name, present, absent, test; repeat for several."),
    ] = None
    against: Annotated[
        list[str] | None,
        typer.Option(callback=values.texts(), help="What prompts without each say instead; repeat for several. By default several others."),
    ] = None

    @property
    def files(self) -> list[Path]:
        """The concepts' files."""
        return self.concept or []

    def open(self, model: ModelOptions) -> list[Concept]:
        """The concepts: styles, objects, attributes, and those of files.

        Raises:
            InvalidInput: none is named, or others are given for files alone.
        """
        named = [{kind: name} for kind in ("style", "object_", "attribute") for name in getattr(self, kind) or []]
        if self.against and not named:
            raise InvalidInput("--against would be ignored: it is for a style, an object or an attribute; write the prompts in the file")
        chosen: list[ConceptOptions] = [ConceptOptions(**each, against=self.against) for each in named]
        chosen += [ConceptOptions(concept=file) for file in self.files]
        if not chosen:
            raise InvalidInput("name concepts by --style, --object, --attribute or --concept FILE, as often as you like; none was given")
        return [each.open(model) for each in chosen]
