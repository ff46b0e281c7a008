"""Stable Diffusion v1, v2 and fine-tunes of them, such as OpenJourney: a UNet with one text encoder."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import UnsupportedModel
from neuroscope.pipeline.families._family import CheckpointNames, Family, Refusal, SitePattern, place_of
from neuroscope.pipeline.families.encoding import Encoded

_TOKENS = 7  # images have powers of four


def block_name(path: str) -> str:
    """'up_blocks.1.attentions.2.transformer_blocks.0' is in block 'up.1'."""
    parts = path.split(".")
    return "mid" if parts[0] == "mid_block" else f"{parts[0].removesuffix('_blocks')}.{parts[1]}"


def inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """One row of zeros, for every UNet of diffusers."""
    config = denoiser.config
    height, width = size or (2 ** len(config.block_out_channels),) * 2
    place = place_of(denoiser)
    label = {"class_labels": torch.zeros(1, dtype=torch.long, device=place["device"])} if _has_labels(config) else {}
    return label | {
        "sample": torch.zeros(1, config.in_channels, height, width, **place),
        "timestep": torch.ones(1, dtype=torch.long, device=place["device"]),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, context_width(config), **place),
    }


def context_width(config: Any) -> int:
    """The channels of what a UNet is given as context.

    Raises:
        UnsupportedModel: its blocks read contexts of several widths.
    """
    width = config.encoder_hid_dim or config.cross_attention_dim
    widths = set(width) if isinstance(width, list | tuple) else {width}
    if len(widths) != 1:
        raise UnsupportedModel(f"the blocks of this UNet read contexts of {sorted(widths)} channels, and one prompt has one context")
    (only,) = widths
    if not isinstance(only, int) or only < 1:
        raise UnsupportedModel(f"this UNet reads contexts of {only!r} channels, by its config; give a UNet that reads a prompt")
    return only


def _has_labels(config: Any) -> bool:
    """Whether a UNet is given a class, as that of the x4 upscaler is given the noise level of its small image."""
    return config.get("class_embed_type") is None and config.get("num_class_embeds") is not None


def is_plain(config: Any) -> bool:
    """Whether a UNet reads its text as it comes, and nothing else; an IP-Adapter on it is refused by its own name."""
    return config.encoder_hid_dim_type in (None, "ip_image_proj") and config.class_embed_type is None


def _read(_denoiser: Any, _module: str, conditions: Conditions) -> Tensor:
    return conditions.context


IP_ADAPTER = Refusal(
    "IP-Adapter",
    "image tokens of its IP-Adapter pass beside the hooked projections; call `pipe.unload_ip_adapter()` first",
    lambda unet: unet.config.encoder_hid_dim_type == "ip_image_proj",
    silent=True,
)
FUSED = Refusal(
    "fused projections",
    "its projections are fused; call `unfuse_qkv_projections()` first",
    lambda denoiser: any("Fused" in type(each).__name__ for each in denoiser.attn_processors.values()),
)
CHUNKED = Refusal(
    "chunked feed-forward",
    "its feed-forwards run in chunks; set their chunk size to None first",
    lambda denoiser: any(getattr(each, "_chunk_size", None) for each in denoiser.modules()),
)
REFUSALS = (IP_ADAPTER, FUSED, CHUNKED)

ENCODED = (Encoded("prompt_embeds"), Encoded("negative_prompt_embeds", part="unconditional"))


def _base(config: Any, velocity: bool) -> tuple[str, str]:
    """Version 2 projects linearly around its transformers."""
    if config.use_linear_projection:
        return ("sd_v2_v", "stable-diffusion-v2-768-v") if velocity else ("sd_v2", "stable-diffusion-v2-512")
    return ("sd_v1_v" if velocity else "sd_v1"), "stable-diffusion-v1"


STAGES = re.compile(r"(down|up)_blocks\.\d+|mid_block")

UNET = Family(
    name="stable-diffusion-unet",
    component="unet",
    denoisers=("UNet2DConditionModel",),
    matches=lambda config: config.addition_embed_type is None and is_plain(config),
    patterns=(
        SitePattern("query", r"attn2\.to_q", reader="attn2.to_k", reader_rows=True),
        SitePattern("key", r"attn2\.to_k", text_only=True, reader="attn2.to_q", reader_rows=True),
        SitePattern("value", r"attn2\.to_v", text_only=True, reader="attn2.to_out.0"),
        SitePattern("heads", r"attn2\.to_out\.0", before_module=True, reader="attn2.to_out.0"),
        SitePattern("output", r"attn2\.to_out\.0"),
        SitePattern("feedforward", r"ff\.net\.0", reader="ff.net.2"),
    ),
    refusals=REFUSALS,
    block_name=block_name,
    inputs=inputs,
    components={
        "self": re.compile(r".+\.attn1"),
        "cross": re.compile(r".+\.attn2"),
        "ff": re.compile(r".+\.transformer_blocks\.\d+\.ff"),
        "resnet": re.compile(r".+\.resnets\.\d+"),
    },
    stages=STAGES,
    encoded=ENCODED,
    read=_read,
    checkpoint=CheckpointNames(_base),
)
