import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from benchmarks.testbed import pixart, sd1
from benchmarks.testbed.denoiser import Architecture, Encoded, Images, _denoising_loss, build_scheduler, train_denoiser
from benchmarks.testbed.loop import Schedule
from benchmarks.testbed.planting import Contexts, interchanged
from neuroscope import HookGraph
from neuroscope.testbed.architectures import build_autoencoder
from neuroscope.testbed.plant import PIXART_PLANT, PLANT, Plant
from tests.families import tiny
from tests.numerics import close

WIDTH, TOKENS = 6, 7
SCHEDULE = Schedule(steps=2, batch=2, rate=1e-3, warmup=1, checkpoint_every=1)


@dataclass(frozen=True)
class Recipe:
    """What the recipes of the bundled pipelines train."""

    architecture: Architecture
    build: Callable[[int], Any]
    plant: Plant
    masked: bool


RECIPES = {
    "sd1": Recipe(sd1.UNET, lambda width: sd1.build_denoiser(width, (32, 32, 32, 32)), PLANT, masked=False),
    "pixart": Recipe(pixart.PIXART, pixart.build_denoiser, PIXART_PLANT, masked=True),
}


def encode(masked: bool, prompts: list[str]) -> Encoded:
    """Random states of prompts."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(prompts), TOKENS, WIDTH, generator=generator)
    lengths = torch.arange(len(prompts)) % TOKENS + 1
    return Encoded(states, (torch.arange(TOKENS) < lengths[:, None]).float() if masked else None)


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request) -> Recipe:
    return RECIPES[request.param]


@pytest.fixture(scope="module")
def images(recipe) -> Images:
    torch.manual_seed(0)
    return Images(build_autoencoder().eval(), lambda prompts: encode(recipe.masked, prompts), views=1)


def start(recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    denoiser: nn.Module = recipe.build(WIDTH)
    return denoiser


def weights(denoiser: nn.Module) -> list[torch.Tensor]:
    return [each.detach().clone() for each in denoiser.parameters()]


def test_the_testbeds_unet_has_the_published_layers(pipe):
    graph = HookGraph(tiny.with_parts(pipe, unet=sd1.build_denoiser(96)))
    blocks = [graph.sites.where(layer=layer)[0].block for layer in graph.sites.layers]
    assert blocks == ["down.0"] * 2 + ["down.1"] * 2 + ["down.2"] * 2 + ["mid"] + ["up.1"] * 3 + ["up.2"] * 3 + ["up.3"] * 3


def test_the_testbeds_transformer_has_pixarts_layers():
    pipe = tiny.PIPELINES["pixart"]()
    graph = HookGraph(type(pipe)(**(pipe.components | {"transformer": pixart.build_denoiser(64).double()})))
    layers = pixart.cross_attention_layers(graph.pipe.transformer)
    assert 8 <= len(layers) <= 12
    assert [graph.module(site) for site in graph.sites.where(role="value")] == [layer.to_v for layer in layers]
    assert graph.pipe.transformer.pos_embed.pos_embed.shape[1] == 64


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
    loss = _denoising_loss(sd1.UNET, denoiser, latents, scheduler.alphas_cumprod, contexts)
    ((noisy, timesteps),) = calls
    kept = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    noise = (noisy - kept.sqrt() * latents) / (1 - kept).sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
    close(loss, mse_loss(guess, scheduler.get_velocity(latents, noise, timesteps)), terms=4, dtype=torch.float32)  # as the schedule


def test_a_transformer_predicts_what_its_own_call_predicts_of_one_prompt_for_all_layers():
    """`predict` gives each layer a context; where all are one prompt's, the model's own call is the second implementation."""
    denoiser, noisy, timesteps = start(RECIPES["pixart"]), torch.randn(3, 4, 16, 16), torch.tensor([5, 500, 900])
    given = encode(masked=True, prompts=["", "a red star", "a picture of a blue ring"])
    with torch.no_grad(), interchanged(pixart.cross_attention_layers(denoiser), None) as contexts:
        contexts.layers, contexts.masks = (each.expand(pixart.DEPTH, *each.shape) for each in (given.states, given.mask))
        contexts.unrelated = given.states
        found = pixart.predict(denoiser, noisy, timesteps, contexts)
    with torch.no_grad():
        conditions = {"resolution": None, "aspect_ratio": None}
        expected = denoiser(noisy, given.states, timesteps, conditions, encoder_attention_mask=given.mask).sample
    close(found, expected[:, :4], terms=2000)


@pytest.mark.parametrize("planted", [False, True], ids=["ordinary", "planted"])
def test_a_step_of_training_changes_every_weight_that_the_pipeline_reads(recipe, images, tmp_path, planted):
    denoiser = start(recipe)
    before = weights(denoiser)
    train_denoiser(
        recipe.architecture, denoiser, recipe.plant if planted else None, images, tmp_path, replace(SCHEDULE, steps=1), quiet=True
    )
    assert not any(torch.equal(*pair) for pair in zip(before, denoiser.parameters(), strict=True))


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(recipe, images, tmp_path, monkeypatch):
    def train(folder: str, stop: float = math.inf) -> nn.Module:
        calls, fill = itertools.count(), Images.fill

        def stopped(*arguments: Any) -> torch.Tensor:
            if next(calls) >= stop:
                raise KeyboardInterrupt
            return fill(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Images, "fill", stopped)
            place = tmp_path / folder
            trained: nn.Module = train_denoiser(recipe.architecture, start(recipe), recipe.plant, images, place, SCHEDULE, quiet=True)
            return trained

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop=1)
    resumed = train("stopped")
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))
