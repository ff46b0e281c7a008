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
from neuroscope.pipeline.families.encoding import LowerCase, default_of
from neuroscope.pipeline.families.pixart import PIXART
from neuroscope.pipeline.families.unet import FUSED

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
        self._before = instruction
        self._more = len(tokenizer.encode(instruction)) - 2 if instruction else 0
        self.get_vocab = tokenizer.get_vocab

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        """The kept tokens, with their places in the prompts."""
        found = super().__call__([self._before + prompt.lstrip() for prompt in prompts], **self._whole(options))
        kept = {name: [self._kept(row) for row in found[name]] for name in found}
        if "offset_mapping" in kept:
            moves = [len(prompt) - len(prompt.lstrip()) - len(self._before) for prompt in prompts]
            kept["offset_mapping"] = [_moved(row, move) for row, move in zip(kept["offset_mapping"], moves, strict=True)]
        return kept

    def _whole(self, options: dict[str, Any]) -> dict[str, Any]:
        return options | {"max_length": options.get("max_length", self.model_max_length) + self._more, "padding_side": "right"}

    def _kept(self, row: list[Any]) -> list[Any]:
        return [row[0], *row[1 - self.model_max_length :]]


def _moved(offsets: list[tuple[int, int]], move: int) -> list[tuple[int, int]]:
    """Places in a prompt, of places in a longer text that ends with it; tokens before it are nowhere in it."""
    return [(max(0, start + move), max(0, end + move)) if start < end else (0, 0) for start, end in offsets]


def _words(pipe: Any, tokenizer: Any) -> Instructed:
    return Instructed(tokenizer, default_of(pipe, "max_sequence_length"), "\n".join(default_of(pipe, "complex_human_instruction") or ()))


def _inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (2 * config.patch_size,) * 2
    parameter = next(denoiser.parameters())
    place = {"device": parameter.device, "dtype": parameter.dtype}
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
    read=_read,
    words=_words,
    prepares_text=re.compile(r"caption_projection(\..+)?|caption_norm"),
)
