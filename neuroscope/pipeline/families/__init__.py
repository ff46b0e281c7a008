"""Families: how each denoiser architecture exposes its sites. One constant a file, found by itself; nothing else names architectures."""

from neuroscope.pipeline.families._family import CheckpointNames, Family, Refusal, SitePattern, is_compiled, uncompiled
from neuroscope.pipeline.families._registry import FAMILIES, family_of, family_of_denoiser
from neuroscope.pipeline.families.attentions import AttentionMask, FirstText, JointAttention
from neuroscope.pipeline.families.decoding import has_latents, latent_size
from neuroscope.pipeline.families.encoding import (
    END,
    TEXT_OPTIONS,
    Templated,
    WithLength,
    begin_of,
    missing_methods,
    text_options,
    without_texts,
)
from neuroscope.pipeline.families.pipelines import (
    REFUSED_DENOISERS,
    REFUSED_PIPELINES,
    check_modes,
    missing_encode_parameters,
    refuse_pipeline,
)

__all__ = [
    "END",
    "FAMILIES",
    "REFUSED_DENOISERS",
    "REFUSED_PIPELINES",
    "TEXT_OPTIONS",
    "AttentionMask",
    "CheckpointNames",
    "Family",
    "FirstText",
    "JointAttention",
    "Refusal",
    "SitePattern",
    "Templated",
    "WithLength",
    "begin_of",
    "check_modes",
    "family_of",
    "family_of_denoiser",
    "has_latents",
    "is_compiled",
    "latent_size",
    "missing_encode_parameters",
    "missing_methods",
    "refuse_pipeline",
    "text_options",
    "uncompiled",
    "without_texts",
]
