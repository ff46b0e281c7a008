"""How far a run moved from the source run towards the target run; needs no scorer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.core.videos import levels_of

if TYPE_CHECKING:
    from PIL.Image import Image


Space = Literal["image", "latent"]


#: A target run that lies within this share of the source's norm is the source: rounding errors are of that size.
_ROUNDING = {"latent": 1e-5, "image": 1e-3}


@dataclass(frozen=True)
class LatentShare:
    """How far a run's final latent moved from the source run towards the target run: a projection, 0 to 1.

    share = <run - source, target - source> / ‖target - source‖², over all elements of the latent: 0 for the source, 1 for the
    target. It may leave this range. Movement at a right angle to the way from source to target does not count.

    Needs no scorer. `localize` gives it the three runs of each image.
    """

    name: ClassVar[str] = "latent share"
    space: ClassVar[Space] = "latent"

    def __call__(self, run: Any, source: Any, target: Any) -> float:
        """The share of one image; NaN where source and target are the same.

        Args:
            run: the run's final latent, a tensor [channel, height, width].
            source: that of the source run, of the same shape.
            target: that of the target run, of the same shape.
        """
        return _projection([each.cpu().double().numpy() for each in (run, source, target)], _ROUNDING[self.space])


@dataclass(frozen=True)
class ImageShare:
    """As `LatentShare`, between the images' pixels; of videos, between those of all frames."""

    name: ClassVar[str] = "image share"
    space: ClassVar[Space] = "image"

    def __call__(self, run: Image, source: Image, target: Image) -> float:
        """The share of one image; NaN where source and target are the same.

        Args:
            run: the run's image, whose levels from 0 to 255 are compared.
            source: that of the source run, of the same size.
            target: that of the target run, of the same size.
        """
        return _projection([levels_of(each) for each in (run, source, target)], _ROUNDING[self.space])


@dataclass(frozen=True)
class Flipped:
    """Whether a run flipped: 1 where it moved at least `from_share` of the way to the target run, else 0.

    What layers add up in the latent, a viewer or a reader sees all at once: with a low bar each of several layers may
    suffice, with a high one several may be needed.

    Attributes:
        from_share: the bar, between 0 and 1.
    """

    from_share: float = 0.5
    space: ClassVar[Space] = "latent"

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        if not 0 < self.from_share < 1:
            raise InvalidInput(f"from_share={self.from_share} is no bar; give a share between 0 and 1, such as 0.5")

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        return f"flipped from {self.from_share:.0%}"

    def __call__(self, run: Any, source: Any, target: Any) -> float:
        """1 or 0 for one image; NaN where both runs are the same."""
        share = LatentShare()(run, source, target)
        return share if math.isnan(share) else float(share >= self.from_share)


def _projection(runs: Sequence[np.ndarray], rounding: float) -> float:
    """The share of a run, of a source and a target; NaN where these differ by no more than rounding, relative to the source's norm."""
    run, source, target = runs
    way = target - source
    length = float((way**2).sum())
    return float(((run - source) * way).sum()) / length if length > rounding**2 * float((source**2).sum()) else float("nan")


Share = LatentShare | ImageShare | Flipped
