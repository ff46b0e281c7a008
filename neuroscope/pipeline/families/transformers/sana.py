"""Sana: a transformer with linear self-attention, whose blocks cross-attend to a normed projection of Gemma's states, under a mask.

Its pipeline puts an instruction before every prompt, and gives the transformer the states of the prompt's own tokens alone.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.pipeline.families._family import place_of
from neuroscope.pipeline.families.encoding import LowerCase, default_of
from neuroscope.pipeline.families.transformers.pixart import PIXART
from neuroscope.pipeline.families.unets.unet import FUSED

_TOKENS = 7  # images have four


class Instructed(LowerCase):
    """A tokenizer as Sana's pipeline calls it: the prompt in lower case behind an instruction, of which the first token alone is kept.

    Args:
        tokenizer: the pipeline's.
        length: the number of tokens that are kept: the first, and the last of all but one.
        instruction: what stands before every prompt.
    """

    def __init__(self, tokenizer: Any, length: int, instruction: str) -> None:
        super().__init__(tokenizer, length)
        self.eos_token_id = tokenizer.pad_token_id  # no token ends a prompt, so that it ends where padding begins
        self.get_vocab = tokenizer.get_vocab
        self._before = instruction
        self._more = len(tokenizer.encode(instruction)) - 2 if instruction else 0

    def __call__(self, prompts: list[str], max_length: int = 0, **options: Any) -> dict[str, Any]:
        """The kept tokens, with their places in the prompts."""
        texts = [self._before + prompt.strip().lower() for prompt in prompts]
        length = max_length or self.model_max_length
        found = self._tokenizer(texts, max_length=length + self._more, padding_side="right", **options)
        kept = {name: [[row[0], *row[1 - length :]] for row in found[name]] for name in found}
        if "offset_mapping" in kept:
            kept["offset_mapping"] = [self._places(*each) for each in zip(kept["offset_mapping"], prompts, strict=True)]
        return kept

    def _places(self, offsets: list[tuple[int, int]], prompt: str) -> list[tuple[int, int]]:
        """Places in a prompt, of places in the text that ends with it; tokens before it are nowhere, and words begin behind spaces."""
        move = len(prompt) - len(prompt.lstrip()) - len(self._before)
        moved = [(max(0, start + move), max(0, end + move)) if start < end else (0, 0) for start, end in offsets]
        return [(end - len(prompt[start:end].lstrip()), end) for start, end in moved]


def _words(pipe: Any, tokenizer: Any) -> Instructed:
    return Instructed(tokenizer, default_of(pipe, "max_sequence_length"), "\n".join(default_of(pipe, "complex_human_instruction") or ()))


def _prepare(pipe: Any) -> None:
    if getattr(pipe, "tokenizer", None) is not None:
        pipe.tokenizer.padding_side = "right"


def _inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (2 * config.patch_size,) * 2
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, config.in_channels, height, width, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.caption_channels, **place),
        "timestep": torch.ones(1, **place),
        "guidance": torch.ones(1, **place) if config.guidance_embeds else None,
        "encoder_attention_mask": torch.ones(1, _TOKENS, **place),
    }


def _read(denoiser: Any, _module: str, conditions: Conditions) -> Tensor:
    normed: Tensor = denoiser.caption_norm(denoiser.caption_projection(conditions.context))
    return normed


SANA = replace(
    PIXART,
    name="sana",
    denoisers=("SanaTransformer2DModel",),
    matches=lambda config: config.cross_attention_dim is not None,
    patterns=tuple(pattern for pattern in PIXART.patterns if pattern.role != "feedforward"),  # it is made of convolutions
    refusals=(FUSED,),
    inputs=_inputs,
    negatives_alike=False,  # nothing stands before a negative prompt
    stages=re.compile(r"(?!)"),  # its output is cut into as many rows as it was called with
    read=_read,
    words=_words,
    prepare=_prepare,
    prepares_text=re.compile(r"caption_projection(\..+)?|caption_norm"),
)
