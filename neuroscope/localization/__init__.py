"""Localisation: which layers control a concept, by methods that change a running model and measure what comes of it."""

from neuroscope.localization._localization import Localization, localize
from neuroscope.localization.attention_contribution import AttentionContribution
from neuroscope.localization.attribution_patching import AttributionPatching
from neuroscope.localization.causal_tracing import CausalTracing
from neuroscope.localization.halving import Halving
from neuroscope.localization.locogen import LocoGen
from neuroscope.localization.neuron_ablation import NeuronAblation
from neuroscope.localization.neuron_gradients import NeuronGradient
from neuroscope.localization.racing import Racing
from neuroscope.localization.teacher_forced import TeacherForced

__all__ = [
    "AttentionContribution",
    "AttributionPatching",
    "CausalTracing",
    "Halving",
    "Localization",
    "LocoGen",
    "NeuronAblation",
    "NeuronGradient",
    "Racing",
    "TeacherForced",
    "localize",
]
