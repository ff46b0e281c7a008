"""PixArt-α and PixArt-Σ: a transformer whose blocks cross-attend to a projection of the T5 encoder's states, under the prompt's mask."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.pipeline.families._family import Family, place_of
from neuroscope.pipeline.families.attentions import AttentionMask
from neuroscope.pipeline.families.decoding import decode_binned
from neuroscope.pipeline.families.encoding import Encoded, LowerCase, default_of
from neuroscope.pipeline.families.unets.unet import CHUNKED, FUSED, UNET

_TOKENS = 7  # images have a multiple of four
_UNSEEN = -10000.0  # what the transformer adds to the scores of tokens that are not seen


#: How attentions are told of the tokens that are seen, in PixArt and in the transformers that took it over.
MASK = AttentionMask("attention_mask", lambda mask: ((1 - mask.float()) * _UNSEEN)[:, None])
MASKED = (
    Encoded("prompt_embeds"),
    Encoded("prompt_attention_mask", "mask"),
    Encoded("negative_prompt_embeds", part="unconditional"),
    Encoded("negative_prompt_attention_mask", "mask", "unconditional"),
)


def _inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (2 * config.patch_size,) * 2
    place = place_of(denoiser)
    sized = denoiser.use_additional_conditions
    return {
        "hidden_states": torch.zeros(1, config.in_channels, height, width, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.caption_channels or config.cross_attention_dim, **place),
        "timestep": torch.ones(1, dtype=torch.long, device=place["device"]),
        "added_cond_kwargs": {
            "resolution": torch.zeros(1, 2, **place) if sized else None,
            "aspect_ratio": torch.zeros(1, 1, **place) if sized else None,
        },
        "encoder_attention_mask": torch.ones(1, _TOKENS, **place),
    }


def block_name(path: str) -> str:
    """'transformer_blocks.10' is 'block.10', and so is what stands in it."""
    return f"block.{path.split('.')[1]}"


def _read(denoiser: Any, _module: str, conditions: Conditions) -> Tensor:
    if denoiser.caption_projection is None:
        return conditions.context
    projected: Tensor = denoiser.caption_projection(conditions.context)
    return projected


def noise(denoiser: Any, predicted: Tensor) -> Tensor:
    """The first half of the channels, where as many of variance follow."""
    channels = denoiser.config.in_channels
    return predicted[:, :channels] if predicted.shape[1] // 2 == channels else predicted


PIXART = Family(
    name="pixart",
    component="transformer",
    denoisers=("PixArtTransformer2DModel",),
    matches=lambda config: config.cross_attention_dim is not None,
    patterns=UNET.patterns,  # the same blocks
    refusals=(FUSED, CHUNKED),
    block_name=block_name,
    inputs=_inputs,
    components={
        "self": re.compile(r"transformer_blocks\.\d+\.attn1"),
        "cross": re.compile(r"transformer_blocks\.\d+\.attn2"),
        "ff": re.compile(r"transformer_blocks\.\d+\.ff"),
    },
    stages=re.compile(r"transformer_blocks\.\d+"),
    one_step_a_call=True,
    encoded=MASKED,
    read=_read,
    decode=decode_binned,
    words=lambda pipe, tokenizer: LowerCase(tokenizer, default_of(pipe, "max_sequence_length")),
    noise=noise,
    arguments={"latents": "hidden_states", "timestep": "timestep", "context": "encoder_hidden_states"},
    mask=MASK,
    prepares_text=re.compile(r"caption_projection(\..+)?"),
)
