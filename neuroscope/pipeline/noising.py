"""Inputs of a denoiser at any noise level of a run, made from its first call alone.

A run's first prediction gives an estimate of its image. Noised again to a level, it is what the denoiser might be given there, for
one call instead of all that lead to this level.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.errors import InvalidInput

#: What to do where a run cannot be noised again.
INSTEAD = "rank with ns.IntegratedGradients(), which follows whole runs"
#: An estimate from a single prediction may be far too large; latents of trained models have about this standard deviation.
_LARGEST = 1.0
#: In the names of arguments that are another network's results.
_FOREIGN = ("residual", "controlnet")
#: Of timesteps, as a share of the length of training.
_ROUNDING = 4e-3


@dataclass(frozen=True)
class NoiseLevel:
    """One timestep of a scheduler: its noisy latents are signal · image + noise · random numbers.

    Attributes:
        timestep: as the scheduler lists it.
        signal, noise: of the mixture.
        scale: what the denoiser is given, for 1 of the noisy latents (`scheduler.scale_model_input`).
    """

    timestep: float
    signal: float
    noise: float
    scale: float

    def image(self, given: Tensor, predicted: Tensor, prediction: str) -> Tensor:
        """The image that a prediction means.

        Args:
            given: [row, channel, ...], the latents as the denoiser was given them.
            predicted: of the same shape, its prediction.
            prediction: what it predicts, in diffusers' words: "epsilon", "sample", "v_prediction" or "flow_prediction".
        """
        noisy = given / self.scale
        if prediction == "sample":
            return predicted
        if prediction == "epsilon":
            return (noisy - self.noise * predicted) / self.signal
        if prediction == "v_prediction":  # Salimans & Ho 2022, with signal² + noise² = 1
            length = math.hypot(self.signal, self.noise)
            return (self.signal * noisy / length - self.noise * predicted) / length
        return (noisy - self.noise * predicted) / (self.signal + self.noise)  # flow: noise minus image

    def given(self, image: Tensor, random: Tensor) -> Tensor:
        """What the denoiser is given of an image with this noise."""
        mixed: Tensor = self.scale * (self.signal * image + self.noise * random)
        return mixed


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels of runs with the same schedule.

    Attributes:
        levels: of each iteration, in order.
        prediction: what the denoiser predicts; see `NoiseLevel.image`.
        unit: what the denoiser is given for 1 of a timestep.
    """

    levels: tuple[NoiseLevel, ...]
    prediction: str
    unit: float

    @classmethod
    def of(cls, scheduler: Any, first: float) -> NoiseLevels:
        """The levels of runs that begin with a timestep.

        Args:
            scheduler: of diffusers, with its timesteps set.
            first: the timestep that the denoiser was first called with.

        Raises:
            InvalidInput: the scheduler mixes images with noise in a way that is not known, or has no such timestep.
        """
        prediction, (begin, unit) = _prediction(scheduler), _begin(scheduler, first)
        twin = copy.deepcopy(scheduler)
        return cls(tuple(_level(twin, number) for number in range(begin, len(scheduler.timesteps))), prediction, unit)


def _prediction(scheduler: Any) -> str:
    """What the denoiser predicts."""
    if hasattr(scheduler, "scale_noise"):
        return "flow_prediction"
    prediction = str(scheduler.config.get("prediction_type", "epsilon"))
    known = prediction in ("epsilon", "sample", "v_prediction", "flow_prediction") and hasattr(scheduler, "add_noise")
    if not known or hasattr(scheduler, "precondition_inputs"):
        raise InvalidInput(
            f"{type(scheduler).__name__} (prediction_type={prediction!r}) mixes images with noise in a way that is not known; {INSTEAD}"
        )
    return prediction


def _begin(scheduler: Any, first: float) -> tuple[int, float]:
    """Which of its timesteps a run begins with, and what a denoiser is given for 1 of a timestep.

    Flow models are given timesteps divided by the length of training; half precision rounds them.
    """
    timesteps = scheduler.timesteps.double()
    length = int(scheduler.config.get("num_train_timesteps", 1000))
    nearest = [(int((timesteps - first / unit).abs().argmin()), unit) for unit in (1.0, 1 / length)]
    near = [(number, unit) for number, unit in nearest if abs(float(timesteps[number]) - first / unit) <= _ROUNDING * length]
    if near:
        return min(near)  # runs begin early: 1 is the first of 1000 / 1000 rather than the last of 1000
    raise InvalidInput(f"the denoiser was called at {first:g}, which is no timestep of its {type(scheduler).__name__}; {INSTEAD}")


def _level(scheduler: Any, number: int) -> NoiseLevel:
    """One level, by what the scheduler's own methods, which are linear, do to ones and zeros; it changes the scheduler's state."""
    timestep = scheduler.timesteps[number : number + 1]
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def mixed(image: Tensor, random: Tensor) -> float:
        _rewind(scheduler)
        if hasattr(scheduler, "scale_noise"):
            return float(scheduler.scale_noise(image, timestep, random))
        return float(scheduler.add_noise(image, random, timestep))

    signal, noise = mixed(one, zero), mixed(zero, one)
    _rewind(scheduler)
    scaled = scheduler.scale_model_input(one, timestep[0]) if hasattr(scheduler, "scale_model_input") else one
    return NoiseLevel(float(timestep), signal, noise, float(scaled))


def _rewind(scheduler: Any) -> None:
    """Forgets where a run is, as a scheduler's methods depend on that."""
    for name in ("_step_index", "_begin_index"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, None)


class NoisedRun:
    """A run, known by its first call, whose inputs at any noise level can be made.

    Args:
        noise: the levels of its schedule.
        inputs: the arguments of the first call by name, with one row each.
        predicted: [1, channel, ...], the prediction.
        names: what the denoiser calls its latents and timestep (`Family.arguments`).

    Raises:
        InvalidInput: another network's results are among the arguments.
    """

    def __init__(
        self, noise: NoiseLevels, inputs: Mapping[str, Any], predicted: Float[Tensor, "1 channel ..."], names: Mapping[str, str]
    ) -> None:
        if foreign := [name for name, value in inputs.items() if any(each in name for each in _FOREIGN) and value is not None]:
            raise InvalidInput(f"the denoiser is given {foreign[0]} by another network, which holds for one noise level; {INSTEAD}")
        self._noise, self._inputs, self._names = noise, inputs, names
        self._latents, self._time = inputs[names["latents"]], torch.as_tensor(inputs[names["timestep"]]).flatten()[:1]
        given = self._latents[:, : predicted.shape[1]].double()
        self.image = _limited(noise.levels[0].image(given, predicted.double(), noise.prediction))

    def at(self, place: float, seed: int) -> dict[str, Any]:
        """The arguments of a call at a place of the schedule, from 0.0 (its beginning) to 1.0, with noise of a seed."""
        levels = self._noise.levels
        level = levels[min(int(place * len(levels)), len(levels) - 1)]
        random = torch.randn(self.image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        noisy = self._latents.clone()
        noisy[:, : self.image.shape[1]] = level.given(self.image, random.to(self.image.device)).to(noisy)
        time = torch.full_like(self._time, level.timestep * self._noise.unit, dtype=torch.float64).to(self._time.dtype)
        return {**self._inputs, self._names["latents"]: noisy, self._names["timestep"]: time}


def _limited(image: Tensor) -> Tensor:
    """An estimate of an image, no larger than images of trained models are."""
    deviation = image.flatten(1).std(dim=1).view(-1, *[1] * (image.ndim - 1))
    return image / (deviation / _LARGEST).clamp(min=1)
