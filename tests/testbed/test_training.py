import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from neuroscope.testbed.planting import Contexts
from neuroscope.testbed.training.autoencoder import as_tensor, build_autoencoder, normalise_latents
from neuroscope.testbed.training.denoiser import _denoising_loss, build_scheduler
from neuroscope.testbed.world import scenes
from tests.numerics import close


def test_the_noise_schedule_is_the_published_one():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    close(build_scheduler().alphas_cumprod, (1 - betas).cumprod(dim=0), terms=1000)


def test_pictures_are_drawn_between_minus_one_and_one_as_the_seed_says():
    first, again, other = (as_tensor(scenes()[:4], np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 3, 64, 64)
    assert -1 <= first.min() < first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_normalised_latents_change_no_reconstruction():
    torch.manual_seed(0)
    model = build_autoencoder().double().eval()
    images = as_tensor(scenes()[:24], np.random.default_rng(0)).double()
    with torch.no_grad():
        before = model.encode(images).latent_dist
        rebuilt, deviation = model.decode(before.mean).sample, before.mean.std(dim=(0, 2, 3))
        normalise_latents(model, images)
        after = model.encode(images).latent_dist
        close(model.decode(after.mean).sample, rebuilt)
    close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), scale=float(before.mean.abs().max() / deviation.min()), dtype=torch.float64)
    close(after.mean.std(dim=(0, 2, 3)), torch.ones(4), dtype=torch.float64)
    close(after.std, before.std / deviation[:, None, None])
    assert model.config.scaling_factor == 1.0


def test_the_loss_is_the_distance_from_the_schedulers_velocity():
    scheduler, latents, contexts = build_scheduler(), torch.randn(6, 4, 16, 16, dtype=torch.float64), Contexts()
    contexts.layers = torch.zeros(1, 6, 2, 96)
    guess, calls = torch.randn_like(latents), []

    def denoiser(noisy, timesteps, context):
        calls.append((noisy, timesteps))
        return type("Output", (), {"sample": guess})

    torch.manual_seed(0)
    loss = _denoising_loss(denoiser, latents, scheduler.alphas_cumprod, contexts)
    ((noisy, timesteps),) = calls
    kept = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    noise = (noisy - kept.sqrt() * latents) / (1 - kept).sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
    close(loss, mse_loss(guess, scheduler.get_velocity(latents, noise, timesteps)), terms=4, dtype=torch.float32)  # as the schedule
