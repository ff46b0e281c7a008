"""Chroma: FLUX.1's blocks without a pooled text, under the prompt's mask, in which the first token of padding counts as seen.

A small network makes the modulations of all blocks of the step alone. Guidance calls the model for the prompt and then for the negative
prompt. The pipeline gives the mask as numbers, which attention adds to its scores: a token that is not seen counts 1/e of one that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.pipeline.families._family import place_of
from neuroscope.pipeline.families.attentions import AttentionMask, FirstText
from neuroscope.pipeline.families.encoding import Encoded
from neuroscope.pipeline.families.joint.flux import FLUX, TIMESTEPS
from neuroscope.pipeline.families.transformers.pixart import MASKED

_TOKENS = 7  # images have four


def _inputs(denoiser: Any, size: tuple[int, ...] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (4, 4)
    tokens = height // 2 * (width // 2)
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, tokens, config.in_channels, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.joint_attention_dim, **place),
        "timestep": torch.ones(1, **place),
        "img_ids": torch.zeros(tokens, 3, **place),
        "txt_ids": torch.zeros(_TOKENS, 3, **place),
        "attention_mask": torch.ones(1, _TOKENS + tokens, **place),
    }


def _split(
    _order: Sequence[Encoded], _pipe: Any, found: Any, _args: Sequence[Any], _options: Mapping[str, Any]
) -> tuple[Conditions, Conditions | None]:
    context, _places, mask, other, _other_places, other_mask = found
    return Conditions(context, mask=mask), None if other is None else Conditions(other, mask=other_mask)


def _first_text(denoiser: Any, given: Mapping[str, Any], conditions: Conditions) -> Tensor:
    """What the first block's attention reads of prompts at the step of a call, or at its rows' own steps."""
    blocks, latents = denoiser.transformer_blocks, given["hidden_states"]
    begin = 3 * len(denoiser.single_transformer_blocks) + 6 * len(blocks)
    made = denoiser.distilled_guidance_layer(denoiser.time_text_embed(given["timestep"].to(latents.dtype) * TIMESTEPS))
    text: Tensor = blocks[0].norm1_context(
        denoiser.context_embedder.forward(conditions.context.to(latents)), emb=made[:, begin : begin + 6]
    )[0]
    return text


def _as_given(bias: Tensor, given: Tensor) -> Tensor:
    """Of text and image, as what sees and what is seen."""
    image = bias.new_ones(*bias.shape[:2], given.shape[-1] - bias.shape[-1])
    seen = torch.cat([bias, image], dim=-1)
    return (seen * seen.mT)[:, None]


CHROMA = replace(
    FLUX,
    name="chroma",
    denoisers=("ChromaTransformer2DModel",),
    patterns=tuple(pattern for pattern in FLUX.patterns if pattern.role != "pooled"),
    inputs=_inputs,
    components={name: pattern for name, pattern in FLUX.components.items() if name != "pooled"},
    encoded=MASKED,
    split=_split,
    tokenizers=("tokenizer",),
    text_encoders=("text_encoder",),
    arguments={"latents": "hidden_states", "timestep": "timestep", "context": "encoder_hidden_states", "mask": "attention_mask"},
    mask=AttentionMask(
        "attention_mask", lambda mask: mask[:, None], lambda given, tokens, _dtype: given[:, 0, -1:, :tokens], _as_given
    ),  # the image's tokens are last
    first_text=FirstText("transformer_blocks.0.attn", _first_text),
    encodes_apart=False,
    recomputes=False,  # diffusers leaves out the mask of single blocks
)
