"""The budget of a search: a share of what all windows cost, and the least that a search takes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

FEWEST = 2  # images of the final


@dataclass(frozen=True)
class Budget:
    """What a search may cost; all costs are in runs of one image.

    Attributes:
        share: of what all windows of one layer cost.
        layers: the number of layers.
        beside: the number of runs of an image beside those of layers, of the unchanged prompt and of the total effect.
        images: the number of images.
    """

    share: float
    layers: int
    beside: int
    images: int

    @property
    def sweep(self) -> float:
        """The cost of all windows of one layer on all images, with their two ends."""
        return (self.layers + 2.0 + self.beside) * self.images

    @property
    def allowed(self) -> float:
        """The cost that is allowed."""
        return self.share * self.sweep

    def final(self, images: int, finalists: int, screened: int) -> float:
        """The cost of a final on so many images: each finalist alone, all other layers together, and the ends.

        The unchanged runs of images that were screened are there already.
        """
        others = finalists < self.layers
        return images * (1 + finalists + others + self.beside) + max(0, images - screened)

    def least(self, look: float = 0.0) -> float:
        """The cost of the smallest search: a screen of one image, which looks at it for so much, and a final of one layer."""
        return 1 + look + self.final(min(FEWEST, self.images), 1, 1)

    def is_kept(self, look: float = 0.0) -> bool:
        """Whether the smallest search is allowed; warns if it is not."""
        least = self.least(look)
        if least <= self.allowed:
            return True
        share = math.ceil(1000 * least / self.sweep) / 1000
        advice = "leave it at 1" if share >= 1 else f"give {share:.3f} or more, or more prompts and seeds"
        warnings.warn(
            f"budget={self.share:.3g} allows the rows of {self.allowed:.1f} of all windows' {self.sweep:,.0f} images, and the smallest "
            f"search takes those of {'' if look else 'at least '}{least:.1f}, a share of {share:.3f}; it goes on with that. To keep a "
            f"budget, {advice}",
            UserWarning,
            stacklevel=2,
        )
        return False
