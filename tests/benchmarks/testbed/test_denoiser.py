import pytest
import torch
from torch.nn.functional import mse_loss

from benchmarks.testbed.denoiser import _denoising_loss, build_denoiser, build_scheduler
from benchmarks.testbed.planting import Contexts
from neuroscope import HookGraph
from tests.families import tiny
from tests.numerics import close


def test_the_testbeds_unet_has_the_published_layers(pipe):
    graph = HookGraph(tiny.with_parts(pipe, unet=build_denoiser(96)))
    blocks = [graph.sites.where(layer=layer)[0].block for layer in graph.sites.layers]
    assert blocks == ["down.0"] * 2 + ["down.1"] * 2 + ["down.2"] * 2 + ["mid"] + ["up.1"] * 3 + ["up.2"] * 3 + ["up.3"] * 3


def test_the_noise_schedule_is_the_published_one():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    close(build_scheduler().alphas_cumprod, (1 - betas).cumprod(dim=0), terms=1000)


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
