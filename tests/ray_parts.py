"""What processes of Ray's workers import in tests: pipelines, and metrics that fail, tell where they run, or take time."""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from neuroscope import HookGraph, InvalidInput
from tests.families import tiny
from tests.localization.planted import STIPPLE, planted


def pipeline() -> Any:
    """A pipeline that is made by hand."""
    return planted(STIPPLE[:2], dict.fromkeys(range(7), STIPPLE), pipe=tiny.shallow()).pipe


def other_pipeline() -> Any:
    """The same with one weight changed in its last bit."""
    pipe = pipeline()
    weight = pipe.unet.conv_in.weight.data
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(torch.inf, dtype=weight.dtype))
    return pipe


def crowded_pipeline() -> Any:
    """The same on a device that holds two rows at a time."""
    pipe = pipeline()

    def refuse(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if len(args[0] if args else kwargs["sample"]) > 2:
            raise torch.OutOfMemoryError

    pipe.unet.register_forward_pre_hook(refuse, with_kwargs=True)
    return pipe


def missing_pipeline() -> Any:
    raise FileNotFoundError("no such folder here")


def refused_pipeline() -> Any:
    raise InvalidInput("there is no such model")


@dataclass(frozen=True)
class Broken:
    """Fails at images of one prompt."""

    prompt: str
    name: str = "broken"

    def __call__(self, images, prompts) -> np.ndarray:
        if self.prompt in prompts:
            raise ZeroDivisionError("of no image")
        return np.zeros(len(images))


class Particular(Exception):
    """An error that no other process can rebuild."""

    def __init__(self, prompt: str, colour: str) -> None:
        super().__init__(f"{prompt} is not {colour}")


@dataclass(frozen=True)
class Failing:
    """Fails at images of each prompt for a reason of its own, and at those of some with an error that no other process can rebuild."""

    particular: bool = False
    name: str = "failing"

    def __call__(self, images, prompts) -> np.ndarray:
        raise Particular(prompts[0], "mauve") if self.particular else ZeroDivisionError(f"of {prompts[0]}")


class Unsendable:
    """A metric that cannot be pickled."""

    name = "unsendable"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, images, prompts) -> np.ndarray:
        return np.zeros(len(images))

    def __reduce__(self) -> Any:
        raise self._error


@dataclass(frozen=True)
class Device:
    """The number of the GPU that the process was given."""

    name: str = "device"

    def __call__(self, images, prompts) -> np.ndarray:
        time.sleep(0.2)  # so that no worker makes all
        return np.full(len(images), float(os.environ.get("CUDA_VISIBLE_DEVICES") or -1))


@dataclass(frozen=True)
class Logged:
    """The mean level of an image, after a while; notes in a file each prompt whose image was made."""

    log: str
    seconds: float
    name: str = "level"

    def __call__(self, images, prompts) -> np.ndarray:
        time.sleep(self.seconds)
        note(self.log, "made", prompts)
        return np.array([np.asarray(image, dtype=float).mean() for image in images])


def note(log: str, what: str, prompts) -> None:
    """Adds lines with this process's number to a file that several processes write, in one piece."""
    line = "".join(f"{what}\t{prompt}\t{os.getpid()}\n" for prompt in prompts).encode()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line)
    os.close(file)


def graph() -> HookGraph:
    return HookGraph(pipeline())
