"""Localisation: which layers control a concept, by methods that change a running model and measure what comes of it."""

from neuroscope.localization._localization import Localization, localize
from neuroscope.localization.neuron_ablation import NeuronAblation
from neuroscope.localization.neuron_gradients import NeuronGradient
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
    "NeuronAblation",
    "NeuronGradient",
    "Racing",
    "TeacherForced",
    "localize",
]
