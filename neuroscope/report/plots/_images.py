"""The grid of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn as sns
from jaxtyping import UInt8
from matplotlib.axes import Axes
from PIL.Image import Image as PILImage

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.report.plots._axes import check_axes, finish, new_axes, wrapped

if TYPE_CHECKING:
    from PIL.Image import Image


def images(rows: Mapping[str, Sequence[Image]], columns: Sequence[str] = (), *, ax: Axes | None = None) -> Axes:
    """A labelled grid of images: one row per condition, one column per prompt and seed.

    Args:
        rows: the images of each condition, such as `{"before": images}`; all of one size, and as many in each row.
        columns: the columns' labels, such as prompts; by default none.
        ax: where to draw; by default a new figure, 0.95 inches per image.

    Raises:
        InvalidInput: there is no image, rows have different lengths, images have different sizes, or an argument is of another kind.
    """
    check_axes(ax)
    columns = checks.strings("columns", columns)
    rows = {name: _row(name, row) for name, row in checks.instance("rows", rows, Mapping, '{"before": images}').items()}
    count, (width, height) = _check_rows(rows)
    gap = max(2, width // 16)
    ax = ax or new_axes(1.2 + 0.95 * count, 0.5 + 0.95 * len(rows) * height / width)
    ax.imshow(_canvas(rows, gap), interpolation="nearest")
    ax.set_yticks([row * (height + gap) + height / 2 for row in range(len(rows))], list(rows), parse_math=False)
    centres = [column * (width + gap) + width / 2 for column in range(len(columns))]
    ax.set_xticks(centres, [wrapped(name) for name in columns], parse_math=False)
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    return finish(ax, "")


def _row(name: Any, row: Any) -> tuple[Any, ...]:
    """A row of the image grid; one image alone is a row of one."""
    checks.text("the name of a row", name, 'such as {"before": images}')
    if isinstance(row, PILImage):
        return (row,)
    if isinstance(row, str) or not isinstance(row, Iterable):
        raise InvalidInput(f"the images of {name!r} are {checks.shown(row)}, not a list of images; give what ns.generate gives")
    return tuple(row)


def _check_rows(rows: Mapping[str, Sequence[Image]]) -> tuple[int, tuple[int, int]]:
    """The number of columns of the image grid, and the width and height of its images in pixels."""
    counts = {len(row) for row in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise InvalidInput(f"the image grid needs rows of equal, non-zero length, not {sorted(counts)}")
    for name, each in rows.items():
        checks.several(f"the images of {name!r}", each, PILImage, "what ns.generate gives")
    sizes = {image.size for row in rows.values() for image in row}
    if len(sizes) > 1:
        raise InvalidInput(f"the image grid needs images of one size, not {sorted(sizes)}")
    return counts.pop(), sizes.pop()


def _canvas(rows: Mapping[str, Sequence[Image]], gap: int) -> UInt8[np.ndarray, "height width rgb"]:
    """All images of the grid on white, `gap` pixels apart."""
    first = next(iter(rows.values()))
    (width, height), count = first[0].size, len(first)
    canvas = np.full((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, row in enumerate(rows.values()):
        for column, image in enumerate(row):
            top, left = number * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = np.asarray(image.convert("RGB"))
    return canvas
