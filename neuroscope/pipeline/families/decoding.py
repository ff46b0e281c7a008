"""What images are made of final latents or pixels, and what sizes they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from neuroscope.pipeline.families.encoding import default_of


def has_latents(pipe: Any) -> bool:
    """Whether a pipeline's denoiser works on an autoencoder's latents rather than on pixels."""
    return getattr(pipe, "vae", None) is not None


def decode(pipe: Any, latents: Tensor, _options: Mapping[str, Any]) -> list[Image]:
    """The images of final latents [image, channel, height, width] of a call with these options.

    A model without an autoencoder gives pixels from -1 to 1.
    """
    images: list[Image]
    if not has_latents(pipe):
        images = pipe.numpy_to_pil((latents / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy())
        return images
    images = pipe.image_processor.postprocess(decoded(pipe, latents), output_type="pil")
    return images


def decode_binned(pipe: Any, latents: Tensor, options: Mapping[str, Any]) -> list[Image]:
    """As `decode`, where images are made at a size on which the model was trained, and then cut to the one that was asked for."""
    pixels = decoded(pipe, latents)
    if options.get("use_resolution_binning", True):
        side = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        height, width = (options.get(name) or default_of(pipe, name) or side for name in ("height", "width"))
        pixels = pipe.image_processor.resize_and_crop_tensor(pixels, width, height)
    images: list[Image] = pipe.image_processor.postprocess(pixels, output_type="pil")
    return images


@torch.no_grad()
def decoded(pipe: Any, latents: Tensor) -> Tensor:
    """What the autoencoder makes of final latents, [image, channel, height, width]; one image at a time to spare the memory."""
    config = pipe.vae.config
    scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    return torch.cat([pipe.vae.decode(each[None], return_dict=False)[0] for each in scaled])


def latent_size(pipe: Any, denoiser: Any, height: int | None, width: int | None, _frames: int | None = None) -> tuple[int, int]:
    """The height and width of the denoiser's latents for images of a size in pixels, by default the model's."""
    scale, size = pipe.vae_scale_factor if has_latents(pipe) else 1, int(denoiser.config.sample_size)
    return height // scale if height else size, width // scale if width else size
