"""Families: how each denoiser architecture exposes its sites. One constant each; nothing else names architectures."""

from __future__ import annotations

from typing import Any

from neuroscope.core.errors import UnsupportedModel
from neuroscope.pipeline.families._family import Family, SitePattern, is_compiled, uncompiled
from neuroscope.pipeline.families.added_kv import ADDED_KV
from neuroscope.pipeline.families.decoding import has_latents, latent_size
from neuroscope.pipeline.families.encoding import END, begin_of, expected_parts, missing_methods, split_encoded
from neuroscope.pipeline.families.pipelines import REFUSED_PIPELINES, check_modes, missing_encode_parameters, refuse_pipeline
from neuroscope.pipeline.families.sdxl import SDXL
from neuroscope.pipeline.families.unet import UNET

FAMILIES = (UNET, SDXL, ADDED_KV)
_OTHER_DENOISERS = ("transformer", "prior", "decoder")  # named in refusals

__all__ = [
    "END",
    "FAMILIES",
    "REFUSED_PIPELINES",
    "Family",
    "SitePattern",
    "begin_of",
    "check_modes",
    "expected_parts",
    "family_of",
    "family_of_denoiser",
    "has_latents",
    "is_compiled",
    "latent_size",
    "missing_encode_parameters",
    "missing_methods",
    "refuse_pipeline",
    "split_encoded",
    "uncompiled",
]


def family_of(pipe: Any) -> Family:
    """The family of a pipeline's denoiser.

    Raises:
        UnsupportedModel: no family knows this denoiser.
    """
    components = dict.fromkeys(family.component for family in FAMILIES)
    denoiser = next((found for name in (*components, *_OTHER_DENOISERS) if (found := getattr(pipe, name, None)) is not None), None)
    if denoiser is None:
        raise UnsupportedModel(
            f"{type(pipe).__name__} has no {' or '.join(components)}; give a pipeline of diffusers whose denoiser is a {_known_denoisers()}"
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
    if not named:
        raise UnsupportedModel(
            f"{name} is a {type(inner).__name__}, which neuroscope does not know; give a pipeline whose denoiser is a {_known_denoisers()}"
        )
    kinds = {name: inner.config.get(name) for name in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type")}
    raise UnsupportedModel(
        f"this {type(inner).__name__} takes its text in a way that neuroscope does not know ({kinds}); it knows "
        f"{', '.join(family.name for family in FAMILIES)}"
    )


def _known_denoisers() -> str:
    return " or a ".join(dict.fromkeys(name for family in FAMILIES for name in family.denoisers))
