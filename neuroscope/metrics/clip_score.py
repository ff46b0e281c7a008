"""CLIP's score of an image and a text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.pipeline.loading import resolve

if TYPE_CHECKING:
    from PIL.Image import Image

    from neuroscope.pipeline.graph import HookGraph


PUBLISHED_CLIP = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class ClipScore:
    """The cosine between CLIP's embeddings of an image and of a text, not rescaled.

    Hessel et al. (2021) report max(0, 2.5 · cosine), and other code 100 · cosine; compare with care. For photographs and their
    captions cosines of ViT-B/16 lie near 0.3, so differences matter more than levels.

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
                checks.text(name, getattr(self, name), f"{example}, or leave it out")

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        return f"CLIP {self.text!r}" if self.text else "CLIP prompt"

    def bound_to(self, graph: HookGraph) -> Self:
        """This metric with the CLIP model that fits a graph's images, if none was named."""
        if self.model is not None:
            return self
        return replace(self, model="testbed:clip" if graph.model.startswith("testbed:") else PUBLISHED_CLIP)

    def loaded(self) -> dict[str, Any]:
        """The parts of the model that scores depend on, by name, for the keys of a ledger."""
        model, processor = load_clip(self.model or PUBLISHED_CLIP)
        return {"the CLIP model": model, "tokenizer": processor.tokenizer, "image_processor": processor.image_processor}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """One cosine per image, float64, from -1 to 1.

        Args:
            images: of any size; the processor resizes and crops them.
            prompts: one an image, read where no text is set. What exceeds CLIP's length is cut off.

        Raises:
            InvalidInput: no text is set and there are not as many prompts as images.
        """
        texts = [self.text] * len(images) if self.text else list(prompts)
        if len(texts) != len(images):
            counts = f"{counted(len(images), 'image')} and {counted(len(texts), 'prompt')}"
        raise InvalidInput(f"{counts} cannot be compared; give one prompt an image, or a text")
        model, processor = load_clip(self.model or PUBLISHED_CLIP)
        inputs = processor(text=texts, images=list(images), return_tensors="pt", padding="max_length", truncation=True)
        found = model(**inputs.to(model.device))
        return torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).double().cpu().numpy()


@functools.lru_cache(maxsize=2)
def load_clip(model: str) -> tuple[CLIPModel, Any]:
    """A CLIP model and its processor, kept for the next call; at most two models are kept.

    Args:
        model: a folder, a hub id or "testbed:clip".

    Raises:
        InvalidInput: it cannot be loaded; the message says why.
    """
    folder = resolve(model)
    try:
        return CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    except Exception as error:  # whatever transformers raises of a folder that holds something else
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidInput(
            f"the CLIP model {model} cannot be loaded: {said} Give a folder or a hub id of a CLIP model, or measure without one "
            "(LatentShare)"
        ) from error
