"""A small `AutoencoderKL` for the rendered world: 64×64 images to 16×16 latents of four channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.testbed.loop import Schedule, fit
from neuroscope.testbed.architectures import build_autoencoder
from neuroscope.testbed.world import Placement, Scene, pixels, scenes

SCHEDULE = Schedule(steps=900, batch=32, rate=2e-3, averaging=0.98)
DECODER = Schedule(steps=700, batch=32, rate=2e-3, averaging=0.99, seed=2)
_JITTER = 0.15


def train_autoencoder(folder: Path, schedule: Schedule = SCHEDULE, quiet: bool = False) -> AutoencoderKL:
    """Trains the autoencoder on rendered images, then normalises its latents."""
    torch.manual_seed(schedule.seed)
    model: Any = build_autoencoder()
    shown = scenes(held_out=False)

    def loss(rng: np.random.Generator) -> Tensor:
        drawn = [shown[index] for index in rng.integers(0, len(shown), schedule.batch)]
        images = as_tensor(drawn, rng)
        posterior = model.encode(images).latent_dist
        rebuilt = model.decode(posterior.sample()).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        result: Tensor = functional.l1_loss(rebuilt, images) + functional.mse_loss(rebuilt, images) + 1e-3 * divergence
        return result

    trained: Any = fit(model, loss, schedule, folder, quiet)
    normalise_latents(trained, as_tensor(shown, np.random.default_rng(0)))
    return trained


@torch.no_grad()
def normalise_latents(model: Any, images: Tensor) -> None:
    """Gives each latent channel zero mean and unit variance over `images`, without changing any reconstruction.

    The shift and scale go into the two 1×1 convolutions on either side of the latents, exactly inverse to each other.
    """
    latents = model.encode(images).latent_dist.mean
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    into, out = model.quant_conv, model.post_quant_conv
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
    model.register_to_config(scaling_factor=1.0)


def refine_decoder(model: AutoencoderKL, folder: Path, schedule: Schedule = DECODER, quiet: bool = False) -> AutoencoderKL:
    """Trains the decoder alone, in place, for cleaner images; latents, and the denoisers trained on them, stay as they are."""
    shown = scenes(held_out=False)
    decoder = nn.ModuleDict({"project": model.post_quant_conv, "decoder": model.decoder})

    def loss(rng: np.random.Generator) -> Tensor:
        images = as_tensor([shown[index] for index in rng.integers(0, len(shown), schedule.batch)], rng)
        with torch.no_grad():
            latents = model.encode(images).latent_dist.mean
            latents = latents + _JITTER * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        return functional.l1_loss(decoder["decoder"](decoder["project"](latents)), images)

    trained = fit(decoder, loss, schedule, folder, quiet)
    decoder.load_state_dict(trained.state_dict())
    return model


def as_tensor(drawn: list[Scene], rng: np.random.Generator) -> Tensor:
    """The scenes' images at random placements, [image, rgb, row, column], values in -1..1."""
    rendered = np.stack([pixels(scene, Placement.draw(rng)) for scene in drawn])
    return torch.from_numpy(rendered).float().movedim(-1, 1) * 2 - 1
