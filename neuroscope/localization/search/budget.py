"""The budget of a search: a share of the cost of all windows, and the cost of the smallest search."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from neuroscope.core.results.quality import Plan
from neuroscope.generation.dry_run import rows_of_run
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.patch_runner import patches_beside
from neuroscope.localization.search.settings import SETTINGS


@dataclass(frozen=True)
class Budget:
    """What a search may cost. All costs are in runs of one image.

    Attributes:
        share: the budget, as a share of the cost of all windows of one layer.
        layers: the number of layers.
        beside: for each image, the number of runs of what no layer carries, such as the pooled text.
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

    def final(self, images: int, finalists: int, sources: int, targets: int = 0) -> float:
        """The cost of measuring images: each finalist alone, all other layers together, the source and the target.

        Args:
            images: how many.
            finalists: how many layers are measured alone.
            sources: of how many images the source was made before.
            targets: of how many the target was.
        """
        others = finalists < self.layers
        return images * (finalists + others + self.beside) + self.missing_ends(images, sources, targets)

    @staticmethod
    def missing_ends(images: int, sources: int, targets: int) -> int:
        """How many sources and targets of images are still to be made, where some were made before."""
        return max(0, images - sources) + max(0, images - targets)

    def first_images(self, finalists: int, sources: int, targets: int, left: float) -> int:
        """With how many images a search can begin for what is left of the budget; the fewest allowed where it is too little."""
        numbers = range(SETTINGS.fewest_images, SETTINGS.first_images + 1)
        return max((each for each in numbers if self.final(each, finalists, sources, targets) <= left), default=SETTINGS.fewest_images)

    def screened_images(self, first: float, further: Sequence[float]) -> int:
        """How many images can be screened for the screen's part of the budget, at least one.

        Args:
            first: the cost of screening the first image, its unchanged run included.
            further: of each image after it.
        """
        spent, seen = first, 1
        for cost in further:
            if spent * (1 + 1 / seen) > SETTINGS.screen_budget * self.allowed:
                break
            spent, seen = spent + cost, seen + 1
        return seen

    def least(self, look: float = 0.0) -> float:
        """The cost of the smallest search: a screen of one image at the cost `look`, and one layer against all others."""
        return 1 + look + self.final(min(SETTINGS.fewest_images, self.images), 1, 1)

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


def plan_search(experiment: Experiment, share: float) -> Plan:
    """What a search with this budget costs at most.

    With the whole budget, every layer may be measured alone and every group on the way to it, on all images.
    """
    layers, images = len(experiment.graph.sites.layers), len(experiment.image_keys)
    run = rows_of_run(experiment.graph, experiment.generation, experiment.pairs[0].present)
    budget = Budget(share, layers, len(patches_beside(experiment.graph)), images)
    screening = SETTINGS.late_images * (2.0 + layers) / run
    if share < 1:
        most = max(budget.allowed, budget.least(screening))
        return Plan(math.ceil(most), most * run, is_bound=True)
    screened = SETTINGS.trusted_images + 1
    runs = images * (1 + 2 * layers + budget.beside) + screened
    return Plan(runs, (runs + screened * screening) * run, is_bound=True)
