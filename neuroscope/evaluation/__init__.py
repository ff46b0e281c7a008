"""Evaluation: what interventions change, on prompts and seeds that nothing was chosen with."""

from neuroscope.evaluation._evaluate import evaluate, generate, plan_evaluation, random_control, refuse_shares
from neuroscope.evaluation._table import summarize

__all__ = ["evaluate", "generate", "plan_evaluation", "random_control", "refuse_shares", "summarize"]
