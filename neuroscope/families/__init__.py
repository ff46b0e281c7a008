"""Families: how each denoiser architecture exposes its sites. One constant each; nothing else names architectures."""

from __future__ import annotations

from typing import Any

from neuroscope._errors import UnsupportedModel
from neuroscope.families._family import Family, SitePattern, is_compiled, uncompiled
from neuroscope.families.encoding import END, begin_of, encode_without_run, expected_parts, missing_methods, split_encoded
from neuroscope.families.added_kv import ADDED_KV
from neuroscope.families.sdxl import SDXL
from neuroscope.families.unet import UNET

FAMILIES = (UNET, SDXL, ADDED_KV)

__all__ = [
    "END",
    "FAMILIES",
    "Family",
    "SitePattern",
    "begin_of",
    "encode_without_run",
    "expected_parts",
    "family_of",
    "family_of_denoiser",
    "is_compiled",
    "missing_methods",
    "split_encoded",
    "uncompiled",
]


def family_of(pipe: Any) -> Family:
    """The family of a pipeline's denoiser.

    Raises:
        UnsupportedModel: no family knows this denoiser.
    """
    components = dict.fromkeys(family.component for family in FAMILIES)
    denoiser = next((found for name in components if (found := getattr(pipe, name, None)) is not None), pipe)
    return family_of_denoiser(denoiser)


def family_of_denoiser(denoiser: Any) -> Family:
    """The family of a denoiser, by its class and its config.

    Raises:
        UnsupportedModel: no family knows it.
    """
    inner = uncompiled(denoiser)
    named = [family for family in FAMILIES if type(inner).__name__ in family.denoisers]
    for family in named:
        if family.matches(inner.config):
            return family
    if not named:
        known = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.denoisers))
        raise UnsupportedModel(f"{type(inner).__name__} has no denoiser that neuroscope knows; it knows {known}")
    kinds = {name: inner.config.get(name) for name in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type")}
    raise UnsupportedModel(
        f"this {type(inner).__name__} takes its text in a way that neuroscope does not know ({kinds}); it knows "
        f"{', '.join(family.name for family in FAMILIES)}"
    )
