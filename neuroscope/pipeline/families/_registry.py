"""All families, and which of them a pipeline's denoiser belongs to."""

from __future__ import annotations

import importlib.metadata
import pkgutil
from dataclasses import replace
from importlib import import_module
from typing import Any

from neuroscope.core.errors import UnsupportedModel, choose
from neuroscope.pipeline.families._family import Family, uncompiled
from neuroscope.pipeline.families.pipelines import REFUSED_DENOISERS

#: The entry points of families that other packages bring.
GROUP = "neuroscope.families"
_KINDS = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "added_kv_proj_dim")  # named in refusals
_OTHER_DENOISERS = ("transformer", "prior", "decoder")  # named in refusals


def _find() -> tuple[Family, ...]:
    """The constants of the files in and below this folder, and those of other packages, by name."""
    package = import_module(__package__)
    modules = [import_module(each.name) for each in pkgutil.walk_packages(package.__path__, f"{__package__}.") if "._" not in each.name]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Family)]
    found += [each.load() for each in importlib.metadata.entry_points(group=GROUP)]
    return tuple(sorted({family.name: family for family in found}.values(), key=lambda family: family.name))


FAMILIES = _find()


def family_of(pipe: Any, component: str | None = None) -> Family:
    """The family of a pipeline's denoiser.

    Args:
        pipe: the pipeline.
        component: the attribute that holds the denoiser, where several take turns; by default the first.

    Raises:
        UnsupportedModel: no family knows this denoiser.
        InvalidInput: the pipeline has no such denoiser.
    """
    family = _family_of(pipe)
    if component in (None, family.component):
        return family
    known = [name for name in (family.component, *family.successors) if getattr(pipe, name, None) is not None]
    return replace(family, component=choose("component", component, known))


def _family_of(pipe: Any) -> Family:
    components = dict.fromkeys(family.component for family in FAMILIES)
    denoiser = next((found for name in (*components, *_OTHER_DENOISERS) if (found := getattr(pipe, name, None)) is not None), None)
    if denoiser is None:
        raise UnsupportedModel(
            f"{type(pipe).__name__} has no {' or '.join(components)}; give a pipeline of diffusers whose denoiser is {_known_denoisers()}"
        )
    return family_of_denoiser(denoiser, f"{type(pipe).__name__}'s denoiser")


def family_of_denoiser(denoiser: Any, name: str = "this denoiser") -> Family:
    """The family of a denoiser, by its class and its config.

    Args:
        denoiser: it.
        name: how refusals call it.

    Raises:
        UnsupportedModel: no family knows it.
    """
    inner = uncompiled(denoiser)
    named = [family for family in FAMILIES if type(inner).__name__ in family.denoisers]
    for family in named:
        if family.matches(inner.config):
            return family
    if (reason := REFUSED_DENOISERS.get(type(inner).__name__)) is not None:
        raise UnsupportedModel(f"{name} is a {type(inner).__name__}, which is not supported: {reason}")
    if not named:
        raise UnsupportedModel(
            f"{name} is a {type(inner).__name__}, which neuroscope does not know; give a pipeline whose denoiser is {_known_denoisers()}"
        )
    kinds = {name: inner.config.get(name) for name in _KINDS if name in inner.config}
    raise UnsupportedModel(
        f"this {type(inner).__name__} takes its text in a way that neuroscope does not know ({kinds}); it knows "
        f"{', '.join(family.name for family in FAMILIES)}"
    )


def _known_denoisers() -> str:
    return "one of " + ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.denoisers))
