"""Evaluation: what interventions change, on prompts and seeds that nothing was chosen with."""

from neuroscope.evaluation._evaluate import evaluate, generate, random_control
from neuroscope.evaluation._table import summarize

__all__ = ["evaluate", "generate", "random_control", "summarize"]
