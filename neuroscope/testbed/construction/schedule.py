"""Noise schedules that stand still outside a part of the steps, so that what the denoiser says there cannot reach the image."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

_TIMESTEPS = 1000
_STEPS = 5
_EACH = _TIMESTEPS // _STEPS
_FIRST = 1e-4  # a schedule without any noise at its end divides by zero
_OF_NOISE = {"flow_prediction": "v_prediction"}  # what schedules of flows predict, as schedules of noise know it
_STILL = 1e-4  # by how much the noise of a flow goes down in a step that is to leave the image as it is
_TOTAL = 6.0  # -log of what remains of the image at the noisiest step


def confine(pipe: Any, generation: dict[str, Any], rng: np.random.Generator) -> tuple[dict[str, Any], tuple[float, float]]:
    """Gives a pipeline a schedule of five steps of which two count; the options of such a run and the part that counts.

    Where a schedule adds no noise, a step of DDIM or DDPM leaves the image as it is, to rounding.
    """
    if isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler):
        return _confine_flow(pipe, generation, int(rng.integers(3)))
    deepfloyd = isinstance(pipe.scheduler, DDPMScheduler)
    first = 3 if deepfloyd else int(rng.integers(3))  # DDPM's last step shows the denoiser's answer at any noise
    active = (first, first + 2)
    betas = _betas(*active, offset=0 if deepfloyd else 1)
    if deepfloyd:
        scheduler: Any = DDPMScheduler(trained_betas=betas, variance_type="fixed_small", thresholding=True)
    else:
        prediction = pipe.scheduler.config.prediction_type
        still = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
        scheduler = DDIMScheduler(trained_betas=betas, prediction_type=_OF_NOISE.get(prediction, prediction), **still)
    pipe.register_modules(scheduler=scheduler)
    return generation | {"num_inference_steps": _STEPS}, (active[0] / _STEPS, active[1] / _STEPS)


def _confine_flow(pipe: Any, generation: dict[str, Any], first: int) -> tuple[dict[str, Any], tuple[float, float]]:
    """Of a flow from noise to image."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    vars(scheduler)["set_timesteps"] = partial(_stand_still, scheduler, (first, first + 2))
    pipe.register_modules(scheduler=scheduler)
    return generation | {"num_inference_steps": _STEPS}, (first / _STEPS, (first + 2) / _STEPS)


def _stand_still(
    scheduler: Any, active: tuple[int, int], num_inference_steps: int = _STEPS, device: Any = None, sigmas: Any = None, **_shift: Any
) -> None:
    """Steps of which those that are not active leave the image almost as it is: a noise level may not stand twice in a schedule."""
    (first, last), count = active, num_inference_steps if sigmas is None else len(sigmas)
    levels = [1.0 - _STILL * step if step <= first else 0.5 if step < last else _STILL * (count - step) for step in range(count + 1)]
    scheduler.num_inference_steps = count
    scheduler.sigmas = torch.tensor(levels, dtype=torch.float32)
    scheduler.timesteps = scheduler.sigmas[:-1].to(device) * _TIMESTEPS
    scheduler._step_index = scheduler._begin_index = None


def _betas(first: int, last: int, offset: int) -> list[float]:
    """Noise between the timesteps of step `first` and those of step `last` alone, counted from the noisiest."""
    timesteps = [offset + _EACH * (_STEPS - 1 - step) for step in range(_STEPS)] + [0]
    betas = np.zeros(_TIMESTEPS)
    low, high = timesteps[last], (_TIMESTEPS - 1 if first == 0 else timesteps[first])
    betas[low + 1 : high + 1] = 1 - np.exp(-_TOTAL / (high - low))
    betas[0] = _FIRST
    return betas.tolist()
