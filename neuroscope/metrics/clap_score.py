"""CLAP's score of a sound and a text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import ClapModel, ClapProcessor

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted, first_line
from neuroscope.core.sounds import Sound

if TYPE_CHECKING:
    from PIL.Image import Image

PUBLISHED_CLAP = "laion/clap-htsat-unfused"


@dataclass(frozen=True)
class ClapScore:
    """The cosine between CLAP's embeddings of a sound and of a text, not rescaled (Wu et al. 2023).

    Sounds are resampled to CLAP's rate; of several channels the mean counts. CLAP hears the first ten seconds, or what its feature
    extractor's `max_length_s` says, where its own code takes a random part.

    Attributes:
        text: what to listen for, such as "a violin"; by default each sound's own prompt.
        model: a folder or a hub id of a CLAP model.

    Raises:
        InvalidInput: an empty text or model, or something else than text.
    """

    text: str | None = None
    model: str = PUBLISHED_CLAP

    def __post_init__(self) -> None:
        if self.text is not None:
            checks.text("text", self.text, "such as 'a violin', or leave it out")
        checks.text("model", self.model, f"such as {PUBLISHED_CLAP!r}, or leave it out")

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        return f"CLAP {self.text!r}" if self.text else "CLAP prompt"

    def loaded(self) -> dict[str, Any]:
        """The parts of the model that scores depend on, by name, for the keys of a ledger."""
        model, processor = load_clap(self.model)
        return {"the CLAP model": model, "tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """One cosine per sound, float64, from -1 to 1.

        Args:
            images: sounds, as pipelines that make sounds give them.
            prompts: one a sound, read where no text is set.

        Raises:
            InvalidInput: an image that is no sound, or another number of prompts than sounds.
        """
        texts = [self.text] * len(images) if self.text else list(prompts)
        if len(texts) != len(images):
            raise InvalidInput(
                f"{counted(len(images), 'sound')} and {counted(len(texts), 'prompt')} cannot be compared; "
                "give one prompt a sound, or a text"
            )
        model, processor = load_clap(self.model)
        rate, longest = processor.feature_extractor.sampling_rate, processor.feature_extractor.nb_max_samples
        heard = [_sound(each).at(rate)[:longest] for each in images]
        inputs = processor(text=texts, audio=heard, sampling_rate=rate, return_tensors="pt", padding=True, truncation=True)
        found = model(**inputs.to(model.device))
        return torch.nn.functional.cosine_similarity(found.audio_embeds, found.text_embeds).double().cpu().numpy()


def _sound(image: Image) -> Sound:
    if not isinstance(image, Sound):
        raise InvalidInput("CLAP scores sounds, and this is an image without any; score it by ClipScore")
    return image


@functools.lru_cache(maxsize=2)
def load_clap(model: str) -> tuple[ClapModel, Any]:
    """A CLAP model and its processor, kept for the next call; at most two models are kept.

    Args:
        model: a folder or a hub id.

    Raises:
        InvalidInput: it cannot be loaded; the message says why.
    """
    try:
        return ClapModel.from_pretrained(model).eval(), ClapProcessor.from_pretrained(model)
    except Exception as error:  # whatever transformers raises of a folder that holds something else
        raise InvalidInput(
            f"the CLAP model {model} cannot be loaded: {first_line(error)} Give a folder or a hub id of a CLAP model, or measure without "
            "one (LatentShare)"
        ) from error
