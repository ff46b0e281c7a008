"""Localisation: which layers control a concept, by methods that change a running model and measure what comes of it."""

from neuroscope.localization._localization import Localization, localize
from neuroscope.localization.causal_tracing import CausalTracing
from neuroscope.localization.locogen import LocoGen
from neuroscope.localization.teacher_forced import TeacherForced

__all__ = ["CausalTracing", "Localization", "LocoGen", "TeacherForced", "localize"]
