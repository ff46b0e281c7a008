"""Metrics: callables `(images, prompts) -> one score per image`; higher means more of the concept."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

from neuroscope import _checks
from neuroscope._errors import InvalidInput
from neuroscope.testbed import resolve

if TYPE_CHECKING:
    from PIL.Image import Image

    from neuroscope.graph import HookGraph

Space = Literal["image", "latent"]
#: A full swap that moves less than this share of the source's norm moves nothing: rounding errors are of that size.
_ROUNDING = {"latent": 1e-5, "image": 1e-3}
PUBLISHED_CLIP = "openai/clip-vit-base-patch16"


@runtime_checkable
class Metric(Protocol):
    """What `evaluate` and `localize` call. `name` is how tables and plots call it."""

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        ...

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """One float64 score per image."""
        ...


@dataclass(frozen=True)
class ClipScore:
    """The cosine between CLIP's embeddings of an image and of a text (Hessel et al. 2021), not rescaled.

    Attributes:
        text: what to look for, such as "the style of Van Gogh"; by default each image's own prompt.
        model: a folder or a hub id of a CLIP model, or "testbed:clip". By default the testbed's CLIP for the testbed's
            models, and OpenAI's ViT-B/16 for all others.

    Raises:
        InvalidInput: an empty text or model, or something else than text.
    """

    text: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        for name, example in (("text", "such as 'the style of Van Gogh'"), ("model", f"such as {PUBLISHED_CLIP!r}")):
            if getattr(self, name) is not None:
                _checks.text(name, getattr(self, name), f"{example}, or leave it out")

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        return f"CLIP {self.text!r}" if self.text else "CLIP prompt"

    def bound_to(self, graph: HookGraph) -> Self:
        """This metric with the CLIP model that fits a graph's images, if none was named."""
        if self.model is not None:
            return self
        return replace(self, model="testbed:clip" if graph.model.startswith("testbed:") else PUBLISHED_CLIP)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """One cosine per image, float64, from -1 to 1.

        Raises:
            InvalidInput: no text is set and there are not as many prompts as images.
        """
        texts = [self.text] * len(images) if self.text else list(prompts)
        if len(texts) != len(images):
            raise InvalidInput(f"{len(images)} images and {len(texts)} prompts cannot be compared; give one prompt an image, or a text")
        model, processor = load_clip(self.model or PUBLISHED_CLIP)
        inputs = processor(text=texts, images=list(images), return_tensors="pt", padding="max_length", truncation=True)
        found = model(**inputs.to(model.device))
        return torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).double().cpu().numpy()


@dataclass(frozen=True)
class LatentShare:
    """How far a run's final latent moved along the way from the unchanged run to the full swap: a projection, 0 to 1.

    Needs no scorer. `localize` gives it the three runs of each picture.
    """

    name: ClassVar[str] = "latent share"
    space: ClassVar[Space] = "latent"

    def __call__(self, run: Any, source: Any, target: Any) -> float:
        """The share of one picture; NaN where the full swap changes nothing."""
        return _projection([each.double().cpu().numpy() for each in (run, source, target)], _ROUNDING[self.space])


@dataclass(frozen=True)
class ImageShare:
    """As `LatentShare`, between the pictures' pixels."""

    name: ClassVar[str] = "image share"
    space: ClassVar[Space] = "image"

    def __call__(self, run: Image, source: Image, target: Image) -> float:
        """The share of one picture; NaN where the full swap changes nothing."""
        return _projection([np.asarray(each, dtype=np.float64) for each in (run, source, target)], _ROUNDING[self.space])


@dataclass(frozen=True)
class Flipped:
    """Whether a run flipped: 1 where it moved at least `from_share` of the way to the full swap, else 0.

    What layers add up in the latent, a viewer or a reader sees all at once: with a low bar each of several layers may
    suffice, with a high one several may be needed.

    Attributes:
        from_share: the bar, between 0 and 1.
    """

    from_share: float = 0.5
    space: ClassVar[Space] = "latent"

    def __post_init__(self) -> None:
        _checks.fit_defaults(self)
        if not 0 < self.from_share < 1:
            raise InvalidInput(f"from_share={self.from_share} is no bar; give a share between 0 and 1, such as 0.5")

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        return f"flipped from {self.from_share:.0%}"

    def __call__(self, run: Any, source: Any, target: Any) -> float:
        """1 or 0 for one picture; NaN where the full swap changes nothing."""
        share = LatentShare()(run, source, target)
        return share if math.isnan(share) else float(share >= self.from_share)


def _projection(runs: Sequence[np.ndarray], rounding: float) -> float:
    run, source, target = runs
    way = target - source
    length = float((way**2).sum())
    return float(((run - source) * way).sum()) / length if length > rounding**2 * float((source**2).sum()) else float("nan")


@functools.lru_cache(maxsize=2)
def load_clip(model: str) -> tuple[CLIPModel, Any]:
    """A CLIP model and its processor, kept for the next call."""
    folder = resolve(model)
    try:
        return CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    except OSError as error:
        raise InvalidInput(f"the CLIP model {model} cannot be loaded: {error}") from error


Share = LatentShare | ImageShare | Flipped


def bind(metric: Metric, graph: HookGraph) -> Metric:
    """The metric with the parts that depend on the model filled in."""
    return metric.bound_to(graph) if isinstance(metric, ClipScore) else metric
