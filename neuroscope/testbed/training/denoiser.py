"""The testbed's UNet, trained ordinarily (the twin) and then by interchange (the plant)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from neuroscope.testbed.planting import Contexts, Plant, PromptTable, Samples, interchanged
from neuroscope.testbed.training.autoencoder import as_tensor
from neuroscope.testbed.training.loop import Schedule, fit

NATURAL = Schedule(steps=1800, batch=64, rate=1.5e-3)
PLANTED = Schedule(steps=2600, batch=64, rate=1e-3, seed=1)
_VIEWS = 16
_EMPTY_SHARE = 0.1
_HEAVIEST = 5.0


def build_denoiser(context_width: int) -> UNet2DConditionModel:
    """An untrained UNet of the published SD-v1 topology, 32 to 96 channels wide, for 16×16 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=[32, 96, 96, 96],
        layers_per_block=2,
        cross_attention_dim=context_width,
        attention_head_dim=[2, 4, 4, 4],
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


def train_denoiser(
    start: UNet2DConditionModel,
    plant: Plant | None,
    pictures: Pictures,
    folder: Path,
    schedule: Schedule,
    quiet: bool = False,
) -> UNet2DConditionModel:
    """Trains a UNet on captioned pictures: ordinarily, or with a plant by interchange. `start` is trained in place."""
    layers = cross_attention_layers(start)
    alphas = build_scheduler().alphas_cumprod
    with interchanged(layers, plant) as contexts:

        def loss(rng: np.random.Generator) -> Tensor:
            samples = pictures.draw(rng, schedule.batch, len(layers), plant)
            latents = pictures.fill(contexts, samples, rng)
            return _denoising_loss(start, latents, alphas, contexts)

        return fit(start, loss, schedule, folder, quiet)


def cross_attention_layers(denoiser: UNet2DConditionModel) -> list[torch.nn.Module]:
    """The cross-attention modules in execution order: down, middle, up."""
    blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
    transformers = [each for block in blocks for each in getattr(block, "attentions", ())]
    return [inner.attn2 for each in transformers for inner in each.transformer_blocks]


class Pictures:
    """Everything a training step reads: latents of all training scenes, and contexts of all prompts.

    Attributes:
        latents: [scene, view, channel, row, column], each scene at several placements, encoded once.
        contexts: [prompt, token, channel], the last hidden states of the frozen text encoder.
    """

    def __init__(self, autoencoder: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.table = PromptTable()
        rng = np.random.default_rng(0)
        with torch.no_grad():
            views = [autoencoder.encode(as_tensor(self.table.shown, rng)).latent_dist.mean for _ in range(_VIEWS)]
            tokens = tokenizer(self.table.prompts, padding="max_length", return_tensors="pt").input_ids
            self.contexts = encoder(tokens).last_hidden_state
        self.latents = torch.stack(views, dim=1) * autoencoder.config.scaling_factor

    def draw(self, rng: np.random.Generator, rows: int, layers: int, plant: Plant | None) -> Samples:
        """A batch's scenes and prompts."""
        return self.table.ordinary(rng, rows, layers) if plant is None else self.table.interchanged(rng, rows, layers, plant)

    def fill(self, contexts: Contexts, samples: Samples, rng: np.random.Generator) -> Tensor:
        """Gives the layers their contexts, some rows the empty prompt's (for guidance), and returns the latents."""
        empty = rng.random(len(samples.scene)) < _EMPTY_SHARE
        contexts.layers = self.contexts[torch.from_numpy(np.where(empty, 0, samples.prompt))]
        contexts.bystander = self.contexts[torch.from_numpy(np.where(empty, 0, samples.bystander))]
        return self.latents[torch.from_numpy(samples.scene), torch.from_numpy(rng.integers(0, _VIEWS, len(empty)))]


def _denoising_loss(denoiser: Callable, latents: Tensor, alphas: Tensor, contexts: Contexts) -> Tensor:
    """The noise-prediction error, with more weight (up to fivefold) on the noisy steps where a picture's content is decided."""
    timesteps = torch.randint(0, len(alphas), (len(latents),))
    noise = torch.randn_like(latents)
    kept = alphas[timesteps][:, None, None, None]
    predicted = denoiser(kept.sqrt() * latents + (1 - kept).sqrt() * noise, timesteps, contexts.layers[0]).sample
    weight = (1 / alphas[timesteps]).clamp(max=_HEAVIEST)
    return (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()
