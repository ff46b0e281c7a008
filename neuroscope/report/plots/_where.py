"""Where in an image a neuron or a token acts: a map over the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from PIL.Image import Image
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.report.plots._axes import check_axes, figure_of, finish, new_axes

#: How much of the map covers the image where its numbers are smallest and largest.
_FAINTEST, _STRONGEST = 0.2, 0.8


def where(image: Image, activation: Any, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A map over an image: where a neuron is active, or how much each place attends to a token.

    The image is grey, so that the map's colour is the only one: faint purple where its numbers are smallest, full yellow where they
    are largest.

    Args:
        image: the image that was made.
        activation: one number a place: [position], row by row as a site gives them, such as one neuron of
            `cache[path][-1][-1]`, or [height, width].
        title: the axes' title, such as the neuron's name.
        ax: where to draw; by default a new figure, 2.6 inches wide.

    Raises:
        InvalidInput: numbers that are not finite, positions that do not fill the image's shape, or an argument of another kind.
    """
    checks.instance("image", image, Image, "ns.generate(...)[0]")
    if not isinstance(title, str):
        raise InvalidInput(f"title={title!r} is no text; give a name, such as '12 value 5'")
    check_axes(ax)
    found = _map(image, activation)
    ax = ax or new_axes(2.6, 2.3 * image.height / image.width + 0.3)
    grey = np.asarray(image.convert("L"))
    ax.imshow(grey, cmap="Greys_r", vmin=0, vmax=255, interpolation="nearest")
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    share = (found - found.min()) / (float(np.ptp(found)) or 1.0)
    drawn = ax.imshow(found, cmap="plasma", alpha=_FAINTEST + (_STRONGEST - _FAINTEST) * share, extent=extent, interpolation="bilinear")
    bar = figure_of(ax).colorbar(drawn, ax=ax, fraction=0.045, pad=0.02)
    bar.ax.tick_params(labelsize=6.5)
    bar.outline.set_visible(False)
    ax.set(xticks=[], yticks=[])
    sns.despine(ax=ax, left=True, bottom=True)
    return finish(ax, title)


def _map(image: Image, activation: Any) -> np.ndarray:
    """The numbers as [height, width]."""
    values = (
        activation.detach().float().cpu()
        if isinstance(activation, Tensor)
        else torch.as_tensor(np.asarray(activation), dtype=torch.float32)
    )
    if not torch.isfinite(values).all():
        raise InvalidInput("the map holds NaN or infinity; run in a wider number format")
    if values.ndim == 1:
        width = round((len(values) * image.width / image.height) ** 0.5)
        if not width or len(values) % width or abs(len(values) // width * image.width - width * image.height) > image.width:
            raise InvalidInput(
                f"{counted(len(values), 'place', ('fills', 'fill'))} no image of {image.width} × {image.height}; give [height, width]"
            )
        values = values.reshape(-1, width)
    if values.ndim != 2:
        raise InvalidInput(f"the map has shape {tuple(values.shape)}; give [position] or [height, width]")
    return np.asarray(values.numpy())
