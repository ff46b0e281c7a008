"""AnimateDiff: Stable Diffusion v1's UNet with motion modules, in which the frames of a video attend to one another.

Each frame attends to the text on its own, as a row of its own beside the other frames of its video. Motion modules have layers of
the same names (`attn2`), which read no text.
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
from neuroscope.pipeline.families._family import Refusal
from neuroscope.pipeline.families.decoding import latent_size
from neuroscope.pipeline.families.encoding import default_of
from neuroscope.pipeline.families.unets.unet import REFUSALS, UNET, inputs

_FRAMES = 2
_RATE = 8.0  # frames a second of all published motion modules
_SPATIAL = r"(?:(?!motion_modules).)+"

FREE_NOISE = Refusal(
    "FreeNoise",
    "with FreeNoise the frames of a video may read prompts of their own; call `pipe.disable_free_noise()` first",
    lambda unet: any(type(each).__name__ == "FreeNoiseTransformerBlock" for each in unet.modules()),
    silent=True,
)


def _inputs(denoiser: Any, size: tuple[int, int, int] | None = None) -> dict[str, Any]:
    frames, *places = size or (_FRAMES, *[2 ** len(denoiser.config.block_out_channels)] * 2)
    given = inputs(denoiser, (places[0], places[1]))
    given["sample"] = given["sample"][:, :, None].expand(-1, -1, frames, -1, -1)
    return given | {"encoder_hidden_states": given["encoder_hidden_states"].expand(frames, -1, -1)}


def _latent_size(pipe: Any, denoiser: Any, height: int | None, width: int | None, frames: int | None = None) -> tuple[int, int, int]:
    return int(frames or default_of(pipe, "num_frames") or 1), *latent_size(pipe, denoiser, height, width)


@torch.no_grad()
def _decode(pipe: Any, latents: Tensor, _options: Mapping[str, Any]) -> list[Image]:
    made = []
    for each in latents:
        (frames,) = pipe.video_processor.postprocess_video(pipe.decode_latents(each[None]), output_type="pil")
        made.append(Video.of(frames, _RATE))
    return list(made)


ANIMATEDIFF = replace(
    UNET,
    name="animatediff",
    denoisers=("UNetMotionModel",),
    matches=lambda config: config.addition_embed_type is None and config.encoder_hid_dim_type in (None, "ip_image_proj"),
    patterns=tuple(replace(pattern, within=_SPATIAL) for pattern in UNET.patterns),
    refusals=(*REFUSALS, FREE_NOISE),
    inputs=_inputs,
    components={kind: re.compile(rf"(?!.*motion_modules){pattern.pattern}") for kind, pattern in UNET.components.items()},
    stages=re.compile(r"(?!)"),  # its output is cut into as many rows as it was called with
    decode=_decode,
    latent_size=_latent_size,
    makes="video",
    frames=lambda latents: latents.shape[2],
)
