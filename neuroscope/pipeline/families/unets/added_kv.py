"""DeepFloyd IF, stages I and II: text keys and values are added to the image's own, in one softmax.

All layers share one projection of the T5 encoder's states, and each normalises it for itself; a pooled text goes into the
time embedding.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.pipeline.families._family import Family, SitePattern
from neuroscope.pipeline.families.encoding import LowerCase
from neuroscope.pipeline.families.unets.unet import ENCODED, REFUSALS, STAGES, block_name, inputs

POOLED = "add_embedding.proj"
LENGTH = 77  # fixed in diffusers' pipelines, whatever the tokenizer allows


def _inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    given = inputs(denoiser, size)
    labels = {"class_labels": torch.zeros(1, device=given["sample"].device)} if denoiser.config.class_embed_type else {}
    return given | labels


def _read(denoiser: Any, module: str, conditions: Conditions) -> Tensor:
    if module == POOLED:
        embedding = denoiser.add_embedding
        summary: Tensor = embedding.pool(embedding.norm1(conditions.context))
        return summary
    attention = denoiser.get_submodule(module.rpartition(".")[0])
    projected = denoiser.encoder_hid_proj(conditions.context)
    result: Tensor = attention.norm_encoder_hidden_states(projected) if attention.norm_cross is not None else projected
    return result


ADDED_KV = Family(
    name="deepfloyd-if-unet",
    component="unet",
    denoisers=("UNet2DConditionModel",),
    matches=lambda config: (
        config.addition_embed_type == "text"
        and config.encoder_hid_dim_type == "text_proj"
        and config.class_embed_type in (None, "timestep")
        and config.mid_block_type == "UNetMidBlock2DSimpleCrossAttn"
    ),
    patterns=(
        SitePattern("pooled", r"add_embedding\.proj", text_only=True, in_layer=False),
        SitePattern("query", r"to_q", reader="add_k_proj", reader_rows=True),
        SitePattern("key", r"add_k_proj", text_only=True, reader="to_q", reader_rows=True),
        SitePattern("value", r"add_v_proj", text_only=True, reader="to_out.0"),
        SitePattern("heads", r"to_out\.0", before_module=True, reader="to_out.0"),
        SitePattern("output", r"to_out\.0"),
    ),
    refusals=REFUSALS,
    block_name=block_name,
    inputs=_inputs,
    components={
        "cross": re.compile(r".+\.attentions\.\d+\.to_out\.0"),  # the attentions' own outputs hold the whole residual stream
        "resnet": re.compile(r".+\.(resnets|downsamplers|upsamplers)\.\d+"),
    },
    stages=STAGES,
    encoded=ENCODED,
    read=_read,
    words=lambda _pipe, tokenizer: LowerCase(tokenizer, LENGTH),
    prepares_text=re.compile(r"encoder_hid_proj|add_embedding(\..+)?|.+\.norm_cross"),
    noise=lambda _denoiser, predicted: predicted.chunk(2, dim=1)[0],  # then as many channels of variance, which no guidance touches
)
