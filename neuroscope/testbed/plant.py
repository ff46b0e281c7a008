"""The plant of the trained testbed: the layer that keeps each attribute, and the neurons that keep the style."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plant:
    """The planted truth: the layer of each attribute, and the value neurons that carry the style at its layer.

    Layers are counted from 0 in execution order.

    Attributes:
        object: the layer of objects, and of facts.
        colour: the layer of colours.
        style: the layer of styles.
        neuron_count: how many value neurons of the style layer carry the style.
        seed: of the draw of these neurons.
    """

    object: int = 3
    colour: int = 11
    style: int = 12
    neuron_count: int = 28
    seed: int = 0

    @property
    def fact(self) -> int:
        """The layer of facts: the same as the objects'."""
        return self.object

    def attributes(self, layer: int) -> frozenset[str]:
        """The attributes whose words the images follow at a layer."""
        return frozenset(name for name in ("object", "colour", "style", "fact") if getattr(self, name) == layer)

    def neurons(self, width: int) -> list[int]:
        """The style layer's planted value neurons out of `width`, sorted; drawn by the recorded seed."""
        drawn = np.random.default_rng(self.seed).choice(width, size=self.neuron_count, replace=False)
        return sorted(int(index) for index in drawn)


#: The plant of the bundled model `sd1`.
PLANT = Plant()
#: The plant of the bundled model `pixart`.
PIXART_PLANT = Plant(object=2, colour=5, style=4, neuron_count=28)
