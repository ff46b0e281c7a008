"""Localisation: find the layers that control a concept, by methods that change a running model and measure the effect."""

from neuroscope.generation.experiment import Localization
from neuroscope.localization._atlas import atlas, plan_atlas
from neuroscope.localization._localize import localize, plan_localization
from neuroscope.localization.patching.causal_tracing import CausalTracing
from neuroscope.localization.patching.locogen import LocoGen
from neuroscope.localization.patching.racing import Racing
from neuroscope.localization.screening.attention_contribution import AttentionContribution
from neuroscope.localization.screening.attribution_patching import AttributionPatching
from neuroscope.localization.screening.teacher_forced import TeacherForced

__all__ = [
    "AttentionContribution",
    "AttributionPatching",
    "CausalTracing",
    "Localization",
    "LocoGen",
    "Racing",
    "TeacherForced",
    "atlas",
    "localize",
    "plan_atlas",
    "plan_localization",
]
