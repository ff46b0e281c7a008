"""Which denoising step an iteration of a pipeline's loop belongs to.

A pipeline's loop goes over its scheduler's timesteps, or over a part of them, and calls `scheduler.step` once for each. A step
of `num_inference_steps` may take several iterations: two for schedulers of second order, four for Runge-Kutta steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

_RUNGE_KUTTA = 4  # iterations that PNDM's first steps take


@dataclass(frozen=True)
class Schedule:
    """The iterations of one run.

    Attributes:
        timesteps: each iteration's timestep.
        numbers: the step that each belongs to, counted from 0 among those that the run makes.
    """

    timesteps: tuple[float, ...]
    numbers: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of steps that the run makes."""
        return self.numbers[-1] + 1

    def step(self, iteration: int, timestep: float) -> int | None:
        """The step of an iteration; None where the pipeline is not where its schedule says."""
        known = iteration < len(self.timesteps) and self.timesteps[iteration] == timestep
        return self.numbers[iteration] if known else None

    @classmethod
    def of(cls, scheduler: Any, timestep: float, length: int | None, iteration: int = 0) -> Schedule | None:
        """The schedule of a run that begins at a timestep, or is there in a later iteration.

        Args:
            scheduler: of diffusers, with its timesteps set.
            timestep: the first that the denoiser is called with.
            length: how many iterations the run has, where the pipeline says so; by default all that follow.
            iteration: how many iterations it has made before that timestep.

        Returns:
            None where the scheduler has no such timestep.
        """
        if getattr(scheduler, "num_inference_steps", None) is None:
            return None
        every = [float(each) for each in scheduler.timesteps.tolist()]
        first = _first(every, timestep, length, getattr(scheduler, "begin_index", None), iteration)
        if first is None:
            return None
        last = len(every) if length is None else min(len(every), first + length)
        return cls(tuple(every[first:last]), tuple(_numbers(scheduler, every[first:last])))


def _first(timesteps: list[float], timestep: float, length: int | None, begun: int | None, iteration: int) -> int | None:
    """Where a run begins; timesteps may be repeated, so that its length or the scheduler's own index decide among them."""
    places = [place - iteration for place, each in enumerate(timesteps) if each == timestep and place >= iteration]
    preferred = [place for place in (begun if length is None else len(timesteps) - length, begun) if place in places]
    return next(iter([*preferred, *places]), None)


def _numbers(scheduler: Any, timesteps: list[float]) -> list[int]:
    """The step of every iteration of a run."""
    places = range(len(timesteps))
    runge_kutta = getattr(scheduler, "prk_timesteps", None)
    if runge_kutta is not None and len(runge_kutta):
        count = len(runge_kutta)
        return [place // _RUNGE_KUTTA if place < count else count // _RUNGE_KUTTA + place - count for place in places]
    if scheduler.order > 1:
        return [place // scheduler.order for place in places]
    if len(scheduler.timesteps) == scheduler.num_inference_steps:
        return list(places)
    changes = (int(one != other) for one, other in itertools.pairwise(timesteps))
    return list(itertools.accumulate(changes, initial=0))
