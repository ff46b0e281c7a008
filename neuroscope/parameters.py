"""Reading and writing a live model's parameters by name, wherever offloading lets them rest between calls."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from neuroscope._errors import UnsupportedModel


def read_parameter(root: nn.Module, name: str) -> Tensor:
    """The values of a parameter or buffer, on the CPU; they may share the model's memory.

    Raises:
        UnsupportedModel: it has no values, as on the meta device.
    """
    module, kind = _place(root, name)
    with align_module_device(module):
        values = getattr(module, kind).detach()
    if values.device.type == "meta":
        raise UnsupportedModel(f"{name} has no values here; load the model's weights first")
    return values.cpu()


@torch.no_grad()
def read_effective_weight(root: nn.Module, path: str) -> Tensor:
    """What a linear module multiplies by, on the CPU: its weight with what active LoRA adapters add to it.

    Raises:
        UnsupportedModel: it is quantised, or has no values.
    """
    module = root.get_submodule(path)
    if callable(getattr(module, "weight", None)):
        raise UnsupportedModel(f"{path} is quantised ({type(module).__name__}), so its weights cannot be read; load it unquantised")
    if not hasattr(module, "base_layer"):
        return read_parameter(root, f"{path}.weight")
    layer: Any = module
    weight = read_parameter(root, f"{path}.base_layer.weight")
    active = [] if layer.merged or layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
    return weight + sum(layer.get_delta_weight(name).cpu() for name in active)


@torch.no_grad()
def write_parameter(root: nn.Module, name: str, values: Tensor) -> None:
    """Puts other values into a parameter, in place, and where it rests."""
    module, kind = _place(root, name)
    with align_module_device(module):
        getattr(module, kind).data.copy_(values)
    resting = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    if resting is not None:
        resting[kind].copy_(values)


def _place(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, kind = name.rpartition(".")
    return root.get_submodule(path), kind
