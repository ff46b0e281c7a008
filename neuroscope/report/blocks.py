"""What a report is made of: sections of parts, and in them facts, figures, contact sheets and tables. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EmbeddedImage:
    """A PNG as a data URI, and its size on the page in CSS pixels."""

    data: str
    width: int
    height: int


@dataclass(frozen=True)
class Figure:
    """An image with its caption.

    Attributes:
        image: for wide windows.
        alt: what it shows, for those who do not see it.
        caption: what stands under it.
        narrow: the same, drawn for a phone's width; without it a wide image scrolls there.
    """

    image: EmbeddedImage
    alt: str
    caption: str
    narrow: EmbeddedImage | None = None


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: named columns, of which one may be marked, and rows of a prompt and its images."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[EmbeddedImage]]]
    caption: str
    marked: int | None = None


@dataclass(frozen=True)
class Cell:
    """The text of a table's cell or column head; numbers stand right."""

    text: str
    number: bool = False


@dataclass(frozen=True)
class RunBatch:
    """Rows of a table, with a heading of their own if they have a title."""

    rows: Sequence[Sequence[Cell]]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table; a folded one opens on a click."""

    columns: Sequence[Cell]
    groups: Sequence[RunBatch]
    caption: str
    folded: bool = False


@dataclass(frozen=True)
class Fact:
    """A name and what is said of it; several texts are a list."""

    name: str
    texts: Sequence[str]
    code: bool = False


@dataclass(frozen=True)
class Part:
    """One result inside a section.

    Attributes:
        title: its heading.
        source: the file it was read from, and how it was made.
        said: the finding, in one sentence.
        text: what a reader should know to read the rest.
    """

    title: str = ""
    source: str = ""
    said: str = ""
    text: str = ""
    facts: Sequence[Fact] = ()
    figures: Sequence[Figure] = ()
    sheet: Sheet | None = None
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A step of the story; one without parts is left out."""

    title: str
    parts: Sequence[Part] = field(default_factory=list)
    text: str = ""
