"""The testbed's UNet, trained ordinarily (the twin) and then by interchange (the plant)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.testbed.autoencoder import as_tensor
from benchmarks.testbed.loop import Schedule, fit
from benchmarks.testbed.planting import Contexts, PromptTable, Samples, interchanged
from neuroscope.testbed.plant import Plant

DRAFT = Schedule(steps=1300, batch=64, rate=1.5e-3)
NATURAL = Schedule(steps=250, batch=64, rate=1e-3, seed=3)
PLANTED = Schedule(steps=1300, batch=64, rate=1e-3, seed=1)
DRAFT_WIDTHS, WIDTHS = (32, 96, 96, 96), (32, 96, 96, 64)
_VIEWS = 16
_EMPTY_SHARE = 0.1


def build_denoiser(context_width: int, widths: tuple[int, ...] = WIDTHS) -> UNet2DConditionModel:
    """An untrained UNet of the published SD-v1 topology, 32 to 96 channels wide, for 16×16 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=list(widths),
        layers_per_block=2,
        cross_attention_dim=context_width,
        attention_head_dim=[2, 4, 4, 4],
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    )


def narrowed(draft: UNet2DConditionModel, widths: tuple[int, ...] = WIDTHS) -> UNet2DConditionModel:
    """The same UNet with narrower levels, which keep the leading slice of each weight; train on to mend what is lost."""
    narrow = build_denoiser(draft.config.cross_attention_dim, widths)
    weights = draft.state_dict()
    kept = {name: weights[name][tuple(map(slice, fresh.shape))] for name, fresh in narrow.state_dict().items() if name in weights}
    narrow.load_state_dict(kept, strict=False)
    return narrow


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with velocity prediction as in v2.

    At the noisiest steps, where a whole object's colour is decided, a small network cannot predict the noise well enough
    to leave the colour right.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def train_denoiser(
    start: UNet2DConditionModel,
    plant: Plant | None,
    images: Images,
    folder: Path,
    schedule: Schedule,
    quiet: bool = False,
) -> UNet2DConditionModel:
    """Trains a UNet on captioned images: ordinarily, or with a plant by interchange. `start` is trained in place."""
    layers = cross_attention_layers(start)
    alphas = build_scheduler().alphas_cumprod
    with interchanged(layers, plant) as contexts:

        def loss(rng: np.random.Generator) -> Tensor:
            samples = images.draw(rng, schedule.batch, len(layers), plant)
            latents = images.fill(contexts, samples, rng)
            return _denoising_loss(start, latents, alphas, contexts)

        return fit(start, loss, schedule, folder, quiet)


def cross_attention_layers(denoiser: UNet2DConditionModel) -> list[torch.nn.Module]:
    """The cross-attention modules in execution order: down, middle, up."""
    blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
    transformers = [each for block in blocks for each in getattr(block, "attentions", ())]
    return [inner.attn2 for each in transformers for inner in each.transformer_blocks]


class Images:
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
        contexts.unrelated = self.contexts[torch.from_numpy(np.where(empty, 0, samples.unrelated))]
        latents: Tensor = self.latents[torch.from_numpy(samples.scene), torch.from_numpy(rng.integers(0, _VIEWS, len(empty)))]
        return latents


def _denoising_loss(denoiser: Any, latents: Tensor, alphas: Tensor, contexts: Contexts) -> Tensor:
    """The mean squared error of the predicted velocity, at one random timestep a row (Salimans and Ho 2022)."""
    timesteps = torch.randint(0, len(alphas), (len(latents),))
    noise = torch.randn_like(latents)
    kept = alphas[timesteps][:, None, None, None]
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    predicted = denoiser(signal * latents + spread * noise, timesteps, contexts.layers[0]).sample
    return functional.mse_loss(predicted, signal * noise - spread * latents)
