"""How much a mask changes images of prompts without the concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from neuroscope.evaluation._evaluate import generate
from neuroscope.pipeline.graph import HookGraph

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageChange:
    """A metric: the root mean square of the difference of pixels to the untouched model's image, 0 to 1 (black to white).

    It makes the untouched images of one seed itself, each when it is first asked for, so that a finished ledger needs none.

    Args:
        graph: the model.
        seed: of the noise of all images.
        generation: the pipeline's options.
        batch_size: untouched images at a time.
    """

    name: ClassVar[str] = "image change"

    def __init__(self, graph: HookGraph, seed: int, generation: Mapping[str, Any], batch_size: int | None = None) -> None:
        self.seed = seed
        self._graph, self._generation, self._batch_size = graph, generation, batch_size
        self._untouched: dict[str, Image] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """What a ledger knows it by: the model and the options are in every key."""
        return type(self), (self.seed,)

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """One score per image, float64."""
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._untouched))
        if new:
            made = generate(self._graph, None, new, [self.seed] * len(new), self._batch_size, **self._generation)
            self._untouched |= dict(zip(new, made, strict=True))
        return np.array([_distance(image, self._untouched[prompt]) for image, prompt in zip(images, prompts, strict=True)])


def _distance(image: Image, other: Image) -> float:
    difference = (np.asarray(each, dtype=np.float64) / 255 for each in (image, other))
    return float(np.sqrt(np.square(np.subtract(*difference)).mean()))
