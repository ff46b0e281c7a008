"""Evaluation: what interventions change, on prompts and seeds that nothing was chosen with."""

from neuroscope.evaluation._dose_response import dose_response, plan_dose_response
from neuroscope.evaluation._evaluate import evaluate, generate, plan_evaluation, random_control, refuse_shares
from neuroscope.evaluation._response import DoseResponse
from neuroscope.evaluation._table import said_of_halved, summarize

__all__ = [
    "DoseResponse",
    "dose_response",
    "evaluate",
    "generate",
    "plan_dose_response",
    "plan_evaluation",
    "random_control",
    "refuse_shares",
    "said_of_halved",
    "summarize",
]
