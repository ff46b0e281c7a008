"""Plots, saved images and contact sheets as figures of a page, embedded as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image, UnidentifiedImageError

from neuroscope.core.errors import InvalidFile
from neuroscope.report.plots._axes import SAVED_DPI, figure_of

#: CSS pixels per inch of a plot; its labels then have the size of the page's small print.
SCALE = 130
#: Image pixels per CSS pixel, which keeps dense screens sharp.
DENSITY = 2
#: The width in inches of a plot for phones, and what it is taller by than the plot for wide windows.
_NARROW, _TALLER = 2.7, 0.15
#: In CSS pixels: the width of a contact sheet, and the smallest and largest width of its images.
_SHEET, _SMALLEST, _LARGEST = 790, 40, 112


@dataclass(frozen=True)
class EmbeddedImage:
    """A PNG as a data URI, with its size on the page in CSS pixels."""

    data: str
    width: int
    height: int


@dataclass(frozen=True)
class Figure:
    """An image with its caption.

    Attributes:
        image: the image for wide windows.
        alt: what it shows, for readers who do not see it.
        caption: the text under it.
        narrow: the same plot drawn for a phone's width; without it a wide image scrolls there.
    """

    image: EmbeddedImage
    alt: str
    caption: str
    narrow: EmbeddedImage | None = None


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Attributes:
        columns: the columns' heads.
        rows: each prompt with its images, one per column.
        caption: the text under it.
        marked: the index of the column in bold.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[EmbeddedImage]]]
    caption: str
    marked: int | None = None


def drawn(plot: Callable[..., Axes], alt: str, caption: str) -> Figure:
    """Draws a plot twice, for wide windows and for phones.

    Args:
        plot: a function of `ax`, which may be None, that returns the axes it drew into.
        alt: what the plot shows, for readers who do not see it.
        caption: the text under it.
    """
    ax = plot(ax=None)
    height = figure_of(ax).get_figheight()
    wide = _embedded(ax)
    narrow = plt.subplots(figsize=(_NARROW, height + _TALLER), layout="constrained")[1]
    return Figure(wide, alt, caption, _embedded(plot(ax=narrow)))


def shown(images: Mapping[str, Path], name: str, alt: str, caption: str) -> list[Figure]:
    """A saved PNG as a figure; an empty list if the run has no file of that name.

    Args:
        images: the run's PNG files by name.
        name: the file to show.
        alt: what it shows, for readers who do not see it.
        caption: the text under it.

    Raises:
        InvalidFile: the file is damaged.
    """
    if name not in images:
        return []
    path = images[name]
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
            width, height = image.size
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise InvalidFile(f"{path} is damaged or no PNG file ({error}); make or copy it again") from error
    shrink = SCALE / SAVED_DPI if width > 400 else 1
    return [Figure(EmbeddedImage(_inline(data), round(width * shrink), round(height * shrink)), alt, caption)]


def sheet(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str], caption: str, marked: int | None = None) -> Sheet:
    """A contact sheet whose images are as large as its number of columns allows.

    Args:
        rows: by prompt, one image per column.
        columns: the columns' heads.
        caption: the text under the sheet.
        marked: the index of the column in bold.
    """
    width = max(_SMALLEST, min(_LARGEST, _SHEET // len(columns) - 2))
    return Sheet(columns, [(name, [_thumbnail(each, width) for each in images]) for name, images in rows.items()], caption, marked)


def _thumbnail(image: Image.Image, width: int) -> EmbeddedImage:
    height = round(width * image.height / image.width)
    small = image.copy()
    small.thumbnail((DENSITY * width, DENSITY * height))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return EmbeddedImage(_inline(buffer.getvalue()), width, height)


def _embedded(ax: Axes) -> EmbeddedImage:
    """A plot without its title, which the page gives. Closes the plot's figure."""
    ax.set_title("")
    figure = figure_of(ax)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=SCALE * DENSITY, format="png")
    width, height = figure.get_size_inches() * SCALE
    plt.close(figure)
    return EmbeddedImage(_inline(buffer.getvalue()), round(width), round(height))


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
