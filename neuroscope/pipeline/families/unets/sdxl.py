"""Stable Diffusion XL: two text encoders side by side, and a pooled text that reaches every block through the time embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.pipeline.families._family import CheckpointNames, SitePattern
from neuroscope.pipeline.families.encoding import Encoded
from neuroscope.pipeline.families.unets.unet import UNET, inputs, is_plain

POOLED = "add_embedding.linear_1"
_SIZES = 6  # original size, crop and target size, two numbers each


def _inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    given = inputs(denoiser, size)
    channels = config.projection_class_embeddings_input_dim - _SIZES * config.addition_time_embed_dim
    like = {"device": given["sample"].device, "dtype": given["sample"].dtype}
    added = {"text_embeds": torch.zeros(1, channels, **like), "time_ids": torch.zeros(1, _SIZES, **like)}
    return given | {"added_cond_kwargs": added}


def _read(_denoiser: Any, module: str, conditions: Conditions) -> Tensor:
    if module != POOLED:
        return conditions.context
    if conditions.pooled is None:
        raise InvalidInput("this change holds no pooled text, which the pooled path reads; make it with graph.text.conditions")
    return conditions.pooled


SDXL = replace(
    UNET,
    name="stable-diffusion-xl-unet",
    matches=lambda config: config.addition_embed_type == "text_time" and is_plain(config),
    # it reads the image's sizes as well, which a run alone knows
    patterns=(*UNET.patterns, SitePattern("pooled", r"add_embedding\.linear_1", reader="add_embedding.linear_2", in_layer=False)),
    inputs=_inputs,
    encoded=(
        *UNET.encoded,
        Encoded("pooled_prompt_embeds", "pooled"),
        Encoded("negative_pooled_prompt_embeds", "pooled", "unconditional"),
    ),
    read=_read,
    # diffusers and A1111 know the pooled path's module by its original name alone
    checkpoint=CheckpointNames(lambda _config, _velocity: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"), {POOLED: "label_emb.0.0"}),
)
