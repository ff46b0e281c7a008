"""LTX-Video: a transformer over all patches of a video, whose blocks cross-attend to a projection of T5's states, under a mask.

Keys are normed behind their projection, over all heads together, so that one that is zeroed makes the others larger. Values are not.
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
from neuroscope.pipeline.families._family import Refusal, place_of
from neuroscope.pipeline.families.encoding import WithLength, default_of
from neuroscope.pipeline.families.transformers.pixart import PIXART
from neuroscope.pipeline.families.unets.unet import CHUNKED

_TOKENS, _SIZE = 7, (1, 2, 2)

#: Attentions of their own classes keep what they have fused beside the projections, whether or not it is used.
FUSED = Refusal(
    "fused projections",
    "its projections are fused; call `unfuse_qkv_projections()` first",
    lambda denoiser: any(getattr(each, "fused_projections", False) for each in denoiser.modules()),
)


def of_call(pipe: Any, options: Mapping[str, Any], name: str) -> Any:
    """An option of a call: as given, or the pipeline's own default."""
    return default_of(pipe, name) if options.get(name) is None else options[name]


def _inputs(denoiser: Any, size: tuple[int, int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    frames, height, width = size or _SIZE
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, frames * height * width, config.in_channels, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.caption_channels, **place),
        "timestep": torch.ones(1, **place),
        "encoder_attention_mask": torch.ones(1, _TOKENS, **place),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def _latent_size(pipe: Any, _denoiser: Any, height: int | None, width: int | None, frames: int | None = None) -> tuple[int, int, int]:
    given = {"height": height, "width": width, "num_frames": frames}
    pixels = {name: int(of_call(pipe, given, name)) for name in given}
    space, time = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
    return (pixels["num_frames"] - 1) // time + 1, pixels["height"] // space, pixels["width"] // space


@torch.no_grad()
def _decode(pipe: Any, latents: Tensor, options: Mapping[str, Any]) -> list[Image]:
    """The videos of packed latents. Where the autoencoder is told a timestep, it adds noise of its own, which is of seed 0 here."""
    vae, size = pipe.vae, _latent_size(pipe, pipe.transformer, *(options.get(name) for name in ("height", "width", "num_frames")))
    patches = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
    unpacked = pipe._unpack_latents(latents, *size, *patches)
    scaled = pipe._denormalize_latents(unpacked, vae.latents_mean, vae.latents_std, vae.config.scaling_factor).to(vae.dtype)
    return [_video(pipe, each[None], options) for each in scaled]


def _video(pipe: Any, latents: Tensor, options: Mapping[str, Any]) -> Video:
    time: Tensor | None = None
    if pipe.vae.config.timestep_conditioning:
        level = float(of_call(pipe, options, "decode_timestep"))
        scale = level if (given := options.get("decode_noise_scale")) is None else float(given)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
        latents, time = latents.lerp(noise, scale), torch.tensor([level]).to(latents)
    pixels = pipe.vae.decode(latents, time, return_dict=False)[0]
    (frames,) = pipe.video_processor.postprocess_video(pixels, output_type="pil")
    return Video.of(frames, float(of_call(pipe, options, "frame_rate")))


LTX = replace(
    PIXART,
    name="ltx-video",
    denoisers=("LTXVideoTransformer3DModel",),
    matches=lambda _config: True,
    refusals=(FUSED, CHUNKED),
    inputs=_inputs,
    read=lambda denoiser, _module, conditions: denoiser.caption_projection(conditions.context),
    decode=_decode,
    words=lambda pipe, tokenizer: WithLength(tokenizer, default_of(pipe, "max_sequence_length")),
    noise=lambda _denoiser, predicted: predicted,
    prepares_text=re.compile(r"caption_projection(\..+)?|.+\.attn2\.norm_k"),
    latent_size=_latent_size,
    channels_last=True,
    makes="video",
)
