"""What can be planted, and the record of what was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput

#: What each plant is.
PLANTS: dict[str, str] = {
    "layer": "one layer carries the concept",
    "pair": "two adjacent layers carry it together",
    "apart": "two layers that are not adjacent carry it together",
    "redundant": "two layers, either of which suffices for an image that shows it",
    "both": "two layers, both of which an image that shows it needs",
    "schedule": "one layer carries it, in a part of the denoising schedule alone",
    "neurons": "a few value neurons of one layer carry it",
    "pooled": "only the pooled text carries it",
    "decoy": "one layer carries it; value neurons of another read it, and nothing reads them",
    "nothing": "nothing carries it",
    "prompt": "one layer carries it for half of the prompts, another for the other half",
    "relayed": "the text of one layer passes it on to a later one, in which alone the image reads it",
}
_THINGS = ("a red circle and a white square", "a blue star", "a green ring and a red square", "a cyan cross")
NAME, OTHER = "stipple", "plain"
#: A share of the total effect from which on an image shows the concept, for plants of two layers that carry half of it each.
SHOWN_FROM = {"redundant": 0.2, "both": 0.8}
_POOLED = ("sdxl", "if-1", "if-2", "hunyuandit", "sd3", "flux")
#: The families whose blocks rewrite the text; no block of theirs does where something is planted.
REWRITING = ("sd3", "flux")
_RELAYING = ("sd3",)
#: An effect of this share of the total is rounding of float32 through all steps.
_ROUNDING = 2e-3


@dataclass(frozen=True)
class Planted:
    """What is planted in a constructed pipeline.

    Attributes:
        family, plant, seed: as given to `build`.
        concept: the stated prompt set; for other prompts the plant need not be exact.
        layers: the carrying layers, in execution order.
        by_prompt: for each pair of prompts the layers that carry it.
        neurons: by site path, the carrying value neurons; empty where whole layers carry.
        effects: by site path, what each of these does alone when it reads the prompt without the concept: how far it moves the image
            towards that prompt's, as a share of the total effect (a mean over pairs). Below 0 it moves the image away.
        pooled: whether the pooled text carries it.
        steps: the part of the schedule in which it is carried, as fractions.
        relay: the layer whose text passes it on to `layers`; the image reads nothing of it there.
        decoy: the layer of the decoy's neurons, and by site path these neurons.
        shown_from: the share of the total effect from which on an image shows the concept; None where every share counts.
        generation: the pipeline's options for a short run of small images.
    """

    family: str
    plant: str
    seed: int
    concept: Concept
    layers: tuple[int, ...]
    by_prompt: tuple[tuple[int, ...], ...]
    neurons: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    effects: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    pooled: bool = False
    steps: tuple[float, float] = (0.0, 1.0)
    relay: int | None = None
    decoy: int | None = None
    decoy_neurons: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shown_from: float | None = None
    generation: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def towards(self) -> Mapping[str, tuple[int, ...]]:
        """By site path, the carrying neurons that alone push the image towards the prompt without the concept.

        These are what a mask that removes the concept should hold, and what a ranking by score should find. A ranking by size
        should find all of `neurons`.
        """
        return {
            path: tuple(neuron for neuron, effect in zip(chosen, self.effects[path], strict=True) if effect > _ROUNDING)
            for path, chosen in self.neurons.items()
        }


def concept() -> Concept:
    """The concept of every plant: a style, in four pairs of prompts."""
    present, absent = ([f"{thing} in the style of {name}" for thing in _THINGS] for name in (NAME, OTHER))
    return Concept(NAME, present, absent, [f"a yellow cross in the style of {NAME}"])


def drawn_layers(plant: str, count: int, rng: Any) -> tuple[int, ...]:
    """The carrying layers of a plant among `count` layers, drawn by a numpy generator."""
    if plant in ("nothing", "pooled"):
        return ()
    if plant in ("layer", "schedule", "neurons", "decoy"):
        return (int(rng.integers(count)),)
    if plant == "relayed":
        return (int(rng.integers(1, count)),)
    if plant == "pair":
        first = int(rng.integers(count - 1))
        return (first, first + 1)
    while True:  # layers that are not adjacent
        first, second = sorted(rng.choice(count, 2, replace=False).tolist())
        if second - first > 2:
            return (first, second)


def check_family(plant: str, family: str) -> None:
    """Raises InvalidInput for a plant that a family cannot hold."""
    if plant == "pooled" and family not in _POOLED:
        raise InvalidInput(f"{family} has no pooled text path, so nothing can be planted there; choose {', '.join(_POOLED)}")
    if plant == "relayed" and family not in _RELAYING:
        raise InvalidInput(f"no block of {family} passes a concept on to a later one in its text; choose {', '.join(_RELAYING)}")
