"""Smallest sets of layers, adjacent or not, by delta debugging (Zeller and Hildebrandt 2002)."""

from __future__ import annotations

from dataclasses import dataclass

from neuroscope.core.results.effects import Patch
from neuroscope.generation.patch_runner import PatchRunner, split
from neuroscope.localization.patching.windows import Patched, is_enough


@dataclass(frozen=True)
class SmallestSets:
    """Sets of layers from which no further part can be left out.

    Attributes:
        enough: the share of the total effect that a set needs.
    """

    enough: float

    def __call__(self, runner: PatchRunner) -> Patched:
        """Finds one set after the other among the layers that are left, until these are not enough together."""
        rest = runner.experiment.graph.sites.layers
        found: list[Patch] = []
        while rest and is_enough(runner.measure([Patch(rest)]), self.enough):
            found.append(Patch(self._shrunk(runner, rest)))
            rest = tuple(layer for layer in rest if layer not in found[-1].layers)
        patches = [*found, *([Patch(rest)] if rest else []), *runner.beside]
        return Patched(patches, runner.measure(patches))

    def most_patches(self, layers: int, _parts: int) -> int:
        """How many sets of layers are measured at most, by the bound of Zeller and Hildebrandt (2002) for each set that is found."""
        return sum(left**2 + 3 * left + 2 for left in range(1, layers + 1))

    def _shrunk(self, runner: PatchRunner, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Layers that are enough, after ever finer parts were left out while the others stayed enough."""
        parts = 2
        while len(layers) > 1:
            others = [Patch(tuple(layer for layer in layers if layer not in part)) for part in split(layers, parts)]
            effects = runner.measure(others)
            if is_enough(effects, self.enough):
                layers, parts = others[int(effects.means().argmax())].layers, max(parts - 1, 2)
            elif parts < len(layers):
                parts = min(2 * parts, len(layers))
            else:
                break
        return layers
