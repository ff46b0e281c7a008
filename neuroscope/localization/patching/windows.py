"""Windows of adjacent layers, of one width or of growing widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from neuroscope.core.results.effects import Effects, Patch
from neuroscope.generation.patch_runner import PatchRunner


class Patched(NamedTuple):
    """What a way of choosing patches measured.

    Attributes:
        patches: in the order of the contact sheet's columns, those beside the layers last.
        effects: of these patches.
    """

    patches: list[Patch]
    effects: Effects


@dataclass(frozen=True)
class Windows:
    """All windows of one width (Basu et al. 2024).

    Attributes:
        width: how many adjacent layers a window has.
    """

    width: int

    def __call__(self, runner: PatchRunner) -> Patched:
        """Measures every window in every part of the schedule, and the patches beside the layers."""
        layers = runner.experiment.graph.sites.layers
        firsts = range(len(layers) - self.width + 1)
        patches = [Patch(layers[first : first + self.width], part) for first in firsts for part in runner.spec.schedule]
        patches += runner.beside
        return Patched(patches, runner.measure(patches))

    def most_patches(self, layers: int, parts: int) -> int:
        """How many patches of layers are measured."""
        return (layers - self.width + 1) * parts


@dataclass(frozen=True)
class GrowingWindows:
    """Windows of one layer, then wider ones, until one is enough: the procedure of Basu et al. (2024).

    Attributes:
        enough: the share of the total effect that a window needs.
    """

    enough: float

    def __call__(self, runner: PatchRunner) -> Patched:
        """The windows of the first width at which one is enough, or of all layers; of one layer where there is no total effect."""
        for width in range(1, len(runner.experiment.graph.sites.layers) + 1):
            found = Windows(width)(runner)
            if found.effects.total_mean() <= 0 or is_enough(found.effects, self.enough):
                break
        return found

    def most_patches(self, layers: int, parts: int) -> int:
        """How many patches of layers are measured at most: those of all widths."""
        return sum(Windows(width).most_patches(layers, parts) for width in range(1, layers + 1))


def is_enough(effects: Effects, share: float) -> bool:
    """Whether the strongest patch of layers has this share of a positive total effect.

    Args:
        effects: means over images are compared; patches without layers, such as the pooled text, do not count.
        share: from 0 to 1.
    """
    means = [mean for patch, mean in zip(effects.patches, effects.means(), strict=True) if patch.layers]
    return bool(max(means) >= share * effects.total_mean() > 0)
