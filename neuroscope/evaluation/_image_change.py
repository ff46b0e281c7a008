"""How much a mask changes images of prompts without the concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from neuroscope.core.videos import levels_of
from neuroscope.evaluation._evaluate import generate
from neuroscope.generation.batches import fitted_batch_size
from neuroscope.pipeline.graph import HookGraph

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class UntouchedImages:
    """Which images of the untouched model there are, without the model; bound to one, it is the metric `ImageChange`.

    Attributes:
        seed: of the noise of all images.
        prompts: of all images.
        generation: the pipeline's options.
        batch_size: images at a time; by default as many as fit the memory.
    """

    seed: int
    prompts: tuple[str, ...]
    generation: Mapping[str, Any]
    batch_size: int | None = None

    def bound_to(self, graph: HookGraph) -> ImageChange:
        """The metric for a model."""
        return ImageChange(graph, self)


class ImageChange:
    """A metric: the root mean square of the difference of pixels to the untouched model's image, 0 to 1 (black to white).

    It makes the untouched images of one seed itself, when one is first asked for, so that a finished ledger needs none. They are made in
    groups that are cut from all prompts, so that their rounding does not depend on what is asked for first.

    Args:
        graph: the model.
        untouched: the images to compare with.
    """

    name: ClassVar[str] = "image change"
    whole_videos: ClassVar[bool] = True

    def __init__(self, graph: HookGraph, untouched: UntouchedImages) -> None:
        self._graph, self._untouched = graph, untouched
        self._batch_size = untouched.batch_size or fitted_batch_size(graph, untouched.generation)
        self._images: dict[str, Image] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """What a ledger knows it by: the model and the options are in every key."""
        return type(self), (self._untouched.seed,)

    def unbound(self) -> UntouchedImages:
        """See `neuroscope.metrics.metric.Unbindable`; groups of other processes are of the same size."""
        untouched = self._untouched
        return UntouchedImages(untouched.seed, untouched.prompts, untouched.generation, self._batch_size)

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """One score per image, float64."""
        for prompt in prompts:
            if prompt not in self._images:
                self._make(self._untouched.prompts.index(prompt) // self._batch_size)
        return np.array([_distance(image, self._images[prompt]) for image, prompt in zip(images, prompts, strict=True)])

    def _make(self, group: int) -> None:
        """Makes the untouched images of a group of prompts."""
        first, untouched = group * self._batch_size, self._untouched
        prompts = untouched.prompts[first : first + self._batch_size]
        made = generate(self._graph, None, prompts, [untouched.seed] * len(prompts), self._batch_size, **untouched.generation)
        self._images |= dict(zip(prompts, made, strict=True))


def _distance(image: Image, other: Image) -> float:
    difference = (levels_of(each) / 255 for each in (image, other))
    return float(np.sqrt(np.square(np.subtract(*difference)).mean()))
