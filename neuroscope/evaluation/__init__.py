"""Evaluation: what interventions change, on prompts and seeds that nothing was chosen with."""

from neuroscope.evaluation._evaluate import evaluate, generate, random_control, summarize

__all__ = ["evaluate", "generate", "random_control", "summarize"]
