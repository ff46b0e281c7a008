"""Training a denoiser of the testbed: ordinarily (the twin) and then by interchange (the plant)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.testbed.autoencoder import as_tensor
from benchmarks.testbed.loop import Schedule, fit
from benchmarks.testbed.planting import Contexts, PromptTable, Samples, interchanged
from neuroscope.testbed.plant import Plant

_EMPTY_SHARE = 0.1


@dataclass(frozen=True)
class Architecture:
    """What training has to know of a class of denoisers.

    Attributes:
        layers: a denoiser's cross-attention modules, in execution order.
        predict: a denoiser's output [image, channel, row, column] for noisy latents and their timesteps, while each layer
            reads the context that `Contexts` holds for it.
    """

    layers: Callable[[Any], list[nn.Module]]
    predict: Callable[[Any, Tensor, Tensor, Contexts], Tensor]


@dataclass(frozen=True)
class Encoded:
    """What a frozen text encoder makes of prompts.

    Attributes:
        states: [prompt, token, channel], its last hidden states.
        mask: [prompt, token], 1 for the tokens that attention sees and 0 for the others; None where it sees all.
    """

    states: Tensor
    mask: Tensor | None = None


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
    architecture: Architecture,
    start: Any,
    plant: Plant | None,
    images: Images,
    folder: Path,
    schedule: Schedule,
    quiet: bool = False,
) -> Any:
    """Trains a denoiser on captioned images: ordinarily, or with a plant by interchange. `start` is trained in place."""
    layers = architecture.layers(start)
    alphas = build_scheduler().alphas_cumprod
    with interchanged(layers, plant) as contexts:

        def loss(rng: np.random.Generator) -> Tensor:
            samples = images.draw(rng, schedule.batch, len(layers), plant)
            latents = images.fill(contexts, samples, rng)
            return _denoising_loss(architecture, start, latents, alphas, contexts)

        return fit(start, loss, schedule, folder, quiet)


class Images:
    """Everything a training step reads: latents of all training scenes, and contexts of all prompts.

    Attributes:
        latents: [scene, view, channel, row, column], each scene at several placements, encoded once.
        contexts: [prompt, token, channel], the last hidden states of the frozen text encoder.
        mask: [prompt, token], which of these tokens attention sees; None where it sees all.
    """

    def __init__(self, autoencoder: AutoencoderKL, encode: Callable[[Sequence[str]], Encoded], views: int = 16) -> None:
        self.table = PromptTable()
        rng = np.random.default_rng(0)
        with torch.no_grad():
            encoded = [autoencoder.encode(as_tensor(self.table.shown, rng)).latent_dist.mean for _ in range(views)]
            prompts = encode(self.table.prompts)
        self.contexts, self.mask = prompts.states, prompts.mask
        self.latents = torch.stack(encoded, dim=1) * autoencoder.config.scaling_factor

    def draw(self, rng: np.random.Generator, rows: int, layers: int, plant: Plant | None) -> Samples:
        """A batch's scenes and prompts."""
        return self.table.ordinary(rng, rows, layers) if plant is None else self.table.interchanged(rng, rows, layers, plant)

    def fill(self, contexts: Contexts, samples: Samples, rng: np.random.Generator) -> Tensor:
        """Gives the layers their contexts, some rows the empty prompt's (for guidance), and returns the latents."""
        empty = rng.random(len(samples.scene)) < _EMPTY_SHARE
        read, unrelated = (torch.from_numpy(np.where(empty, 0, each)) for each in (samples.prompt, samples.unrelated))
        contexts.layers, contexts.unrelated = self.contexts[read], self.contexts[unrelated]
        if self.mask is not None:
            contexts.masks, contexts.unrelated_mask = self.mask[read], self.mask[unrelated]
        view = torch.from_numpy(rng.integers(0, self.latents.shape[1], len(empty)))
        latents: Tensor = self.latents[torch.from_numpy(samples.scene), view]
        return latents


def _denoising_loss(architecture: Architecture, denoiser: Any, latents: Tensor, alphas: Tensor, contexts: Contexts) -> Tensor:
    """The mean squared error of the predicted velocity, at one random timestep a row (Salimans and Ho 2022)."""
    timesteps = torch.randint(0, len(alphas), (len(latents),))
    noise = torch.randn_like(latents)
    kept = alphas[timesteps][:, None, None, None]
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    predicted = architecture.predict(denoiser, signal * latents + spread * noise, timesteps, contexts)
    return functional.mse_loss(predicted, signal * noise - spread * latents)
