"""Families: how each denoiser architecture exposes its sites. One constant each; nothing else names architectures."""

from __future__ import annotations

from typing import Any

from neuroscope._errors import UnsupportedModel
from neuroscope.families._family import Family, SitePattern, has_other_guidance, uncompiled
from neuroscope.families.unet import UNET

FAMILIES = (UNET,)

__all__ = ["FAMILIES", "Family", "SitePattern", "family_of", "has_other_guidance", "uncompiled"]


def family_of(pipe: Any) -> Family:
    """The family of a pipeline's denoiser.

    Raises:
        UnsupportedModel: no family knows this denoiser.
    """
    for family in FAMILIES:
        denoiser = getattr(pipe, family.component, None)
        if type(uncompiled(denoiser)).__name__ in family.denoisers:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.denoisers)
    raise UnsupportedModel(f"{type(pipe).__name__} has no denoiser that neuroscope knows; it knows {known}")
