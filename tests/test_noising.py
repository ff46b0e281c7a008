"""Inputs at any noise level, from a run's first call: against what diffusers' own schedulers do, for all of them."""

import re

import pytest
import torch

import neuroscope as ns
from neuroscope.generation.teacher_forcing import record_steps
from neuroscope.pipeline.noising import NoisedRun, NoiseLevels
from tests.families import tiny
from tests.test_schedule import SCHEDULERS, scheduler_of

STEPS = 5
KNOWN = [name for name in SCHEDULERS if not name.startswith("EDM")]  # which mixes its inputs with its outputs
NAMES = {"latents": "sample", "timestep": "timestep"}


def begun(name: str, prediction: str = "epsilon"):
    """A scheduler with the timesteps of a run."""
    scheduler = scheduler_of(name)
    scheduler.register_to_config(prediction_type=prediction)
    scheduler.set_timesteps(STEPS)
    return scheduler


def noised(scheduler, latents, predicted) -> NoisedRun:
    first = scheduler.timesteps[0]
    return NoisedRun(NoiseLevels.of(scheduler, float(first)), {"sample": latents, "timestep": first}, predicted, NAMES)


def drawn(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_the_image_is_the_schedulers_own_estimate(name, prediction):
    latents, predicted = drawn(0, 1)
    if (name, prediction) == ("EulerAncestralDiscreteScheduler", "sample"):
        pytest.skip("it has no such prediction")
    scheduler = begun(name, prediction)
    noisy = latents * scheduler.init_noise_sigma
    given = scheduler.scale_model_input(noisy, scheduler.timesteps[0])
    expected = scheduler.step(predicted, scheduler.timesteps[0], noisy).pred_original_sample
    found = noised(begun(name, prediction), given, predicted).image
    torch.testing.assert_close(found, expected / expected.std().clamp(min=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_latents_at_a_level_are_those_of_the_scheduler(name):
    scheduler = begun(name)
    run = noised(scheduler, *drawn(0, 1))
    for number in range(len(scheduler.timesteps)):
        fresh = begun(name)
        random = torch.randn(run.image.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        noisy = fresh.add_noise(run.image, random, fresh.timesteps[number : number + 1])
        made = run.at((number + 0.5) / len(scheduler.timesteps), seed=7)
        torch.testing.assert_close(made["sample"], begun(name).scale_model_input(noisy, fresh.timesteps[number]), rtol=1e-6, atol=1e-6)
        assert made["timestep"].item() == fresh.timesteps[number].item()


def test_a_flow_models_latents_lie_on_the_line_from_image_to_noise():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    image, noise = drawn(0, 1)
    image /= image.std()
    sigma = float(scheduler.sigmas[0])
    time = scheduler.timesteps[:1] / 1000
    given = {"sample": (1 - sigma) * image + sigma * noise, "timestep": time}
    run = NoisedRun(NoiseLevels.of(scheduler, float(time)), given, noise - image, NAMES)
    torch.testing.assert_close(run.image, image)
    random = torch.randn(image.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for number in range(STEPS):
        made, sigma = run.at(number / STEPS, seed=3), float(scheduler.sigmas[number])
        torch.testing.assert_close(made["sample"], (1 - sigma) * image + sigma * random, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(made["timestep"], scheduler.timesteps[number : number + 1] / 1000)


@pytest.mark.parametrize("make", [tiny.sd1, tiny.sd2], ids=["sd1", "sd2"])
def test_a_runs_first_call_is_a_call_at_the_first_place(make):
    graph = ns.HookGraph(make())
    with record_steps(graph, [0], stop_after=True) as recorded:
        graph.pipe(tiny.PROMPT, generator=torch.Generator().manual_seed(0), num_inference_steps=STEPS, height=16, width=16)
    step = recorded[0][0]
    levels = NoiseLevels.of(graph.pipe.scheduler, float(step.inputs["timestep"]))
    run = NoisedRun(levels, step.inputs, step.output, graph.family.arguments)
    assert len(levels.levels) == STEPS
    made = run.at(0.0, seed=0)
    assert made.keys() == step.inputs.keys()
    assert made["timestep"].item() == step.inputs["timestep"].item()
    assert made["sample"].dtype == step.inputs["sample"].dtype


def test_an_estimate_that_is_far_too_large_is_made_smaller():
    latents, predicted = drawn(0, 1)
    run = noised(begun("DDIMScheduler"), latents, 100 * predicted)
    assert run.image.std().item() == pytest.approx(1.0)


def test_what_is_not_known_is_refused():
    latents, predicted = drawn(0, 1)
    instead = "rank with ns.IntegratedGradients(), which follows whole runs"
    with pytest.raises(ns.InvalidInput, match=re.escape("EDMEulerScheduler (prediction_type='epsilon') mixes images with noise in a way")):
        noised(begun("EDMEulerScheduler"), latents, predicted)
    scheduler = begun("DDIMScheduler")
    with pytest.raises(ns.InvalidInput, match=re.escape(f"called at 123.5, which is no timestep of its DDIMScheduler; {instead}")):
        NoiseLevels.of(scheduler, 123.5)
    given = {"sample": latents, "timestep": scheduler.timesteps[0], "mid_block_additional_residual": latents}
    with pytest.raises(ns.InvalidInput, match="the denoiser is given mid_block_additional_residual by another network"):
        NoisedRun(NoiseLevels.of(scheduler, float(scheduler.timesteps[0])), given, predicted, NAMES)
