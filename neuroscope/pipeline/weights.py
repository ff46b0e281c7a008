"""Reading and writing a live model's parameters by name, wherever offloading lets them rest between calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.core.errors import InvalidInput, UnsupportedModel
from neuroscope.core.sites import Site
from neuroscope.pipeline.families import Family

_PLAIN = (Tensor, nn.Parameter)


def read_parameter(root: nn.Module, name: str) -> Tensor:
    """The values of a parameter or buffer, on the CPU; they may share the model's memory.

    Raises:
        UnsupportedModel: it has no values, as on the meta device.
    """
    module, kind = _place(root, name)
    with align_module_device(module):
        values = getattr(module, kind).detach()
    return _present(name, values)


def resting_device(module: nn.Module) -> torch.device | None:
    """The device on which a module's weights rest between calls; None where hooks bring them as its parts run."""
    first = next(module.parameters(), None)
    return None if first is None or first.device.type == "meta" else first.device


def is_plain(linear: Any) -> bool:
    """Whether a linear module's weight is what it multiplies by: floating-point numbers, one a place, neither packed nor scaled."""
    weight: Any = getattr(linear, "weight", None)
    if type(weight) not in _PLAIN or not weight.is_floating_point():
        return False
    return tuple(weight.shape) == (getattr(linear, "out_features", None), getattr(linear, "in_features", None))


def has_bias(root: nn.Module, path: str) -> bool:
    """Whether a linear module adds a bias of its own."""
    return getattr(root.get_submodule(path), "bias", None) is not None


def entries(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """By name, what a module itself stores: parameters and buffers, also those that are not saved, or what a quantised module packs."""
    saved: dict[str, Any] = {}
    module._save_to_state_dict(saved, "", keep_vars=True)
    yield from saved.items()
    yield from ((name, value) for name, value in module._buffers.items() if name not in saved and value is not None)


def _present(name: str, values: Tensor) -> Tensor:
    if values.device.type == "meta":
        raise UnsupportedModel(f"{name} has no values here; load the model's weights first")
    return values.cpu()


@torch.no_grad()
def read_effective_weight(root: nn.Module, path: str) -> Tensor:
    """What a linear module multiplies by, on the CPU: its weight with what active LoRA adapters add to it.

    Raises:
        UnsupportedModel: it is quantised, or has no values.
    """
    module: Any = root.get_submodule(path)
    inner: Any = getattr(module, "base_layer", module)
    if not is_plain(inner):
        raise UnsupportedModel(f"{path} is quantised ({type(inner).__name__}), so its weights cannot be read; load it unquantised")
    if inner is module:
        return read_parameter(root, f"{path}.weight")
    resting = inner.weight.device.type == "meta"  # offloaded modules take their inputs from anywhere
    units = torch.eye(inner.in_features, dtype=inner.weight.dtype, device="cpu" if resting else inner.weight.device)
    result: Tensor = (module.forward(units) - module.forward(torch.zeros_like(units[:1]))).T.cpu()  # whatever kind of adapter it is
    return result


def reader_of(family: Family, site: Site) -> str | None:
    """The path, inside the denoiser, of the linear module whose columns read a site's neurons; None where there is none."""
    pattern = family.pattern(site.role, site.module)
    return None if pattern.reader is None or pattern.reader_rows else pattern.beside(site.module, pattern.reader)


def outgoing_norm(family: Family, denoiser: nn.Module, site: Site) -> Float[Tensor, "neuron"]:
    """The norm of the weights that read each neuron, float64; ones where neurons are added to the residual stream.

    Raises:
        UnsupportedModel: the weights are quantised.
    """
    pattern = family.pattern(site.role, site.module)
    if pattern.reader is None:
        return torch.ones(site.width, dtype=torch.float64)
    weight = read_effective_weight(denoiser, pattern.beside(site.module, pattern.reader))
    norms: Tensor = weight.double().norm(dim=1 if pattern.reader_rows else 0)
    if pattern.rewritten:  # a reader that reads more reads these first
        return norms[: site.width]
    return norms if len(norms) == site.width else _over_groups(norms, site.width, denoiser.get_submodule(site.module.rpartition(".to_")[0]))


def _over_groups(norms: Float[Tensor, "reader"], width: int, attention: Any) -> Float[Tensor, "neuron"]:
    """Where several heads of queries share one of keys and values: the norm of all of a neuron's readers, or of the one that they share."""
    channels = max(len(norms), width) // attention.heads
    if len(norms) > width:
        found: Tensor = norms.view(width // channels, -1, channels).norm(dim=1).flatten()
        return found
    return norms.view(-1, 1, channels).expand(-1, width // len(norms), -1).flatten()


def outgoing_norms(family: Family, denoiser: nn.Module, sites: Iterable[Site]) -> dict[str, Float[Tensor, "neuron"]]:
    """`outgoing_norm` of each site, by path; sites whose readers are quantised are left out."""
    found = {}
    for site in sites:
        with contextlib.suppress(UnsupportedModel):
            found[site.path] = outgoing_norm(family, denoiser, site)
    return found


def head_counts(denoiser: nn.Module, sites: Iterable[Site]) -> dict[str, int]:
    """Into how many attention heads the neurons of key, value and query sites are split, by path.

    Raises:
        InvalidInput: a site whose neurons are not split into heads.
    """
    found = {}
    for site in sites:
        attention: Any = denoiser.get_submodule(site.module.rpartition(".")[0])
        if not hasattr(attention, "heads"):
            raise InvalidInput(f"{site.path} is not split into attention heads; choose keys, values or queries")
        found[site.path] = int(site.width * attention.heads // attention.inner_dim)  # several heads of queries may share one of keys
    return found


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
