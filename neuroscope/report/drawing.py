"""Plots and images as figures of a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from PIL import Image, UnidentifiedImageError

from neuroscope.core.errors import InvalidFile
from neuroscope.report.blocks import EmbeddedImage, Figure, Sheet

#: CSS pixels to an inch of a plot, so that its labels are as large as the page's small print.
SCALE = 130
#: Pixels to a CSS pixel, so that dense screens stay sharp.
DENSITY = 2
#: The width of a plot for phones, in inches.
_NARROW = 2.7
#: How wide a contact sheet may be, and how wide its images, in CSS pixels.
_SHEET, _SMALLEST, _LARGEST = 790, 40, 112


def drawn(plot: Callable[..., Axes], alt: str, caption: str) -> Figure:
    """A plot as a figure, drawn for wide windows and again for phones; `plot` takes `ax`."""
    ax = plot(ax=None)
    height = _drawing(ax).get_figheight()
    wide = _embedded(ax)
    narrow = plt.subplots(figsize=(_NARROW, height + 0.15), layout="constrained")[1]
    return Figure(wide, alt, caption, _embedded(plot(ax=narrow)))


def shown(path: Path, alt: str, caption: str) -> Figure:
    """A PNG file as a figure, as it is.

    Raises:
        InvalidFile: it is damaged.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
            width, height = image.size
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise InvalidFile(f"{path} is damaged or no PNG file ({error}); make or copy it again") from error
    shrink = SCALE / 200 if width > 400 else 1  # plots.write saves 200 dots to an inch
    return Figure(EmbeddedImage(_inline(data), round(width * shrink), round(height * shrink)), alt, caption)


def sheet(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str], caption: str, marked: int | None = None) -> Sheet:
    """A contact sheet of small images, as large as its columns have room."""
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
    """A plot without its title, which the page gives; its figure is closed."""
    ax.set_title("")
    drawing = _drawing(ax)
    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=SCALE * DENSITY, format="png")
    width, height = drawing.get_size_inches() * SCALE
    plt.close(drawing)
    return EmbeddedImage(_inline(buffer.getvalue()), round(width), round(height))


def _drawing(ax: Axes) -> Drawing:
    return cast("Drawing", ax.get_figure(root=True))


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
