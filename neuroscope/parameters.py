"""Reading and writing a live model's parameters by name, wherever offloading lets them rest between calls."""

from __future__ import annotations

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
