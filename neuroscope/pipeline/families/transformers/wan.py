"""Wan 2.1 and 2.2: a transformer over all patches of a video, whose blocks cross-attend to a projection of UMT5's states, without a mask.

A prompt is padded with zeros to 512 tokens, and all are attended. A guided step calls the transformer twice, for the prompt and then for
the negative prompt. Wan 2.2 has two transformers: the second takes over below a noise level. Models that also read an image through
keys and values of their own are not supported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from neuroscope.core.videos import Video
from neuroscope.pipeline.families._family import SitePattern, place_of
from neuroscope.pipeline.families.encoding import Encoded, WithLength, default_of
from neuroscope.pipeline.families.transformers.ltx import FUSED, of_call
from neuroscope.pipeline.families.transformers.pixart import PIXART
from neuroscope.pipeline.families.unets.unet import CHUNKED, UNET

_TOKENS = 7  # videos have other numbers of patches
_RATE = 16.0  # frames a second of all published models


def _inputs(denoiser: Any, size: tuple[int, int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    place = place_of(denoiser)
    smallest = (config.patch_size[0], 2 * config.patch_size[1], 2 * config.patch_size[2])
    return {
        "hidden_states": torch.zeros(1, config.in_channels, *(size or smallest), **place),
        "timestep": torch.ones(1, dtype=torch.long, device=place["device"]),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.text_dim, **place),
    }


def _latent_size(pipe: Any, _denoiser: Any, height: int | None, width: int | None, frames: int | None = None) -> tuple[int, int, int]:
    given = {"height": height, "width": width, "num_frames": frames}
    pixels = {name: int(of_call(pipe, given, name)) for name in given}
    space, time = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
    return max(0, pixels["num_frames"] - 1) // time + 1, pixels["height"] // space, pixels["width"] // space


def _read(denoiser: Any, _module: str, conditions: Any) -> Tensor:
    projected: Tensor = denoiser.condition_embedder.text_embedder(conditions.context)
    return projected


@torch.no_grad()
def _decode(pipe: Any, latents: Tensor, _options: Mapping[str, Any]) -> list[Image]:
    config = pipe.vae.config
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1, 1).to(latents) for each in (config.latents_mean, config.latents_std))
    made = []
    for each in latents:
        scaled = each[None] / (1.0 / deviation) + mean  # as the pipeline rounds
        pixels = pipe.vae.decode(scaled.to(pipe.vae.dtype), return_dict=False)[0]
        (frames,) = pipe.video_processor.postprocess_video(pixels, output_type="pil")
        made.append(Video.of(frames, _RATE))
    return list(made)


WAN = replace(
    PIXART,
    name="wan",
    denoisers=("WanTransformer3DModel",),
    matches=lambda config: config.added_kv_proj_dim is None and config.image_dim is None,
    patterns=(
        *(pattern for pattern in UNET.patterns if pattern.role != "feedforward"),
        SitePattern("feedforward", r"ffn\.net\.0", reader="ffn.net.2"),
    ),
    refusals=(FUSED, CHUNKED),
    inputs=_inputs,
    components={
        "self": re.compile(r"blocks\.\d+\.attn1"),
        "cross": re.compile(r"blocks\.\d+\.attn2"),
        "ff": re.compile(r"blocks\.\d+\.ffn"),
    },
    stages=re.compile(r"(?!)"),  # its output is cut into as many rows as it was called with
    encoded=(Encoded("prompt_embeds"), Encoded("negative_prompt_embeds", part="unconditional")),
    read=_read,
    decode=_decode,
    words=lambda pipe, tokenizer: WithLength(tokenizer, default_of(pipe, "max_sequence_length")),
    noise=lambda _denoiser, predicted: predicted,
    mask=None,
    prepares_text=re.compile(r"condition_embedder\.text_embedder(\..+)?|.+\.attn2\.norm_k"),
    latent_size=_latent_size,
    makes="video",
    calls=("conditional", "unconditional"),
    successors=("transformer_2",),
)
