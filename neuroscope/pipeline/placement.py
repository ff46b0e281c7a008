"""Where a pipeline runs: device, number format, offload, and how large it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from neuroscope.core.errors import InvalidInput, choose
from neuroscope.pipeline.families import family_of, uncompiled

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "float16", "bfloat16", "float32")
OFFLOADS = ("none", "model", "sequential")


class Placement(NamedTuple):
    """Where a pipeline is to run, and in which number format."""

    device: str
    dtype: torch.dtype
    offload: str


def placement(device: str = "auto", dtype: str = "auto", offload: str = "none") -> Placement:
    """What the options of `load_pipeline` mean on this machine.

    Raises:
        InvalidInput: an unknown value, a device that is not here, or offloading without a GPU.
    """
    found = _device(device)
    name = choose("dtype", dtype, DTYPES)
    if name == "auto":
        name = "float32" if found == "cpu" else "float16"
    if choose("offload", offload, OFFLOADS) != "none" and found == "cpu":
        raise InvalidInput(
            f"offload {offload!r} moves parts of the model to a GPU while they run, and the device is the CPU; leave it out, or give the "
            "device of a GPU"
        )
    return Placement(found, getattr(torch, name), offload)


def _device(device: str) -> str:
    kind, colon, number = device.partition(":")
    choose("device", kind if kind == "cuda" and re.fullmatch(r"\d{1,3}", number) else device, DEVICES)
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return next(each for each, there in here.items() if there)
    if not here[kind]:
        able = ", ".join(each for each, there in here.items() if there)
        raise InvalidInput(f"the device {device!r} is not here: torch {torch.__version__} finds no such GPU; give auto, or one of {able}")
    if colon and int(number) >= torch.cuda.device_count():
        raise InvalidInput(f"the device {device!r} is not here: there are {torch.cuda.device_count()}, counted from cuda:0")
    return device


def place(pipe: Any, asked: Placement) -> Any:
    """The pipeline, moved to its device, or offloaded from it.

    Raises:
        InvalidInput: the pipeline cannot be offloaded.
    """
    if asked.offload == "none":
        return pipe.to(asked.device)
    begin = pipe.enable_model_cpu_offload if asked.offload == "model" else pipe.enable_sequential_cpu_offload
    try:
        begin(device=asked.device)
    except ValueError as error:
        raise InvalidInput(f"{type(pipe).__name__} cannot be offloaded: {error}; leave offload out") from error
    return pipe


@dataclass(frozen=True)
class Footprint:
    """Where a pipeline runs and how large it is.

    Attributes:
        model: its name.
        family: its denoiser's.
        device: on which it computes.
        dtype: the denoiser's number format.
        parameters: of all its parts together.
        bytes: that they take.
        offload: "none", "model", "sequential" or "groups".
    """

    model: str
    family: str
    device: str
    dtype: str
    parameters: int
    bytes: int
    offload: str

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:,.1f} million parameters, {self.bytes / 1e9:,.2f} GB"
        return f"{self.model}: family {self.family}, {self.device}, {self.dtype}, {size}, offload {self.offload}"


def footprint(pipe: Any) -> Footprint:
    """Where a pipeline runs, and how large it is, offloaded parts included.

    Raises:
        UnsupportedModel: the denoiser is of no known family.
    """
    family = family_of(pipe)
    parts = [uncompiled(part) for part in pipe.components.values() if isinstance(part, nn.Module)]
    weights = {id(each): each for part in parts for each in part.parameters()}.values()
    return Footprint(
        model=name_of(pipe),
        family=family.name,
        device=str(pipe._execution_device),
        dtype=dtype_name(uncompiled(getattr(pipe, family.component))),
        parameters=sum(each.numel() for each in weights),
        bytes=sum(each.numel() * each.element_size() for each in weights),
        offload=_offload(parts),
    )


def name_of(pipe: Any) -> str:
    """A pipeline's name: where it was loaded from."""
    return str(getattr(pipe.config, "_name_or_path", "") or type(pipe).__name__)


def dtype_name(denoiser: Any) -> str:
    """A denoiser's number format, such as "float16"."""
    return str(denoiser.dtype).removeprefix("torch.")


def _offload(parts: list[nn.Module]) -> str:
    """How the weights of these parts rest."""
    modules = [module for part in parts for module in part.modules()]
    if any(each.device.type == "meta" for part in parts for each in part.parameters()):
        return "sequential"
    if any(hasattr(module, "_hf_hook") for module in modules):
        return "model"
    registries = (getattr(module, "_diffusers_hook", None) for module in modules)
    return "groups" if any("group_offloading" in getattr(each, "hooks", ()) for each in registries) else "none"
