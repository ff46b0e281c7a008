"""Attention contribution: the part of each layer's attention output that comes from the concept's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Plan
from neuroscope.generation.experiment import Experiment, Localization
from neuroscope.generation.patch_runner import Direction, PatchSpec
from neuroscope.generation.teacher_forcing import TeacherForcing
from neuroscope.localization.screening.local_attention import LocalAttention, for_each_attention
from neuroscope.localization.screening.screen import TargetedStep, check_screen, one_by_one, plan_screen, run_screen

KINDS = ("start", "before", "subject", "last subject", "after", "eos", "padding")
_ROUNDING = 1e-5
#: Of scoring all layers at one step: the row itself, every attention twice more, and against another prompt its projections.
_MOST_NFE = {"nothing": 3.0, "other": 5.0}


@dataclass(frozen=True, kw_only=True, repr=False)
class AttentionContribution(Localization):
    """A screen: the norm of attention × values × output projection that comes from the concept's tokens (Zarei et al. 2025, LocK).

    A score is a layer's share of all layers' norms, averaged over the image's positions, steps, prompts and seeds. It measures how much a
    layer reads of the concept, which need not show in the image: see `LayerScores.fidelity`. Where image and text attend to one another
    (SD3, FLUX), it is what the image's queries read of the concept's tokens.

    Attributes:
        against: "nothing", as published, takes the tokens' contribution; "other" takes the difference of the attention's output to that
            with the prompt without the concept, at all tokens.
        tokens: against "nothing", which kinds of tokens count as the concept's: of "start", "before", "subject" (all but its last token),
            "last subject", "after", "eos" and "padding".
        steps: at how many steps: the middles of as many equal parts of the schedule.
        direction: which run is recorded: "necessity" the one with the concept, "sufficiency" the one without it.
        fidelity: for how many layers the exact effect on one image, drawn at random, is measured too; 0 for none.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, a prompt that holds none of the tokens, or more steps or layers than there
            are.
    """

    against: Literal["nothing", "other"] = "nothing"
    tokens: tuple[str, ...] = ("subject", "last subject")
    steps: int = 3
    direction: Direction = "necessity"
    fidelity: int = 6

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "tokens", (self.tokens,) if isinstance(self.tokens, str) else tuple(self.tokens))
        if not self.tokens:
            raise InvalidInput(f"tokens is empty, so nothing is the concept's; give some of {', '.join(KINDS)}")
        choose("against", self.against, ("nothing", "other"))
        for kind in self.tokens:
            choose("kind of token", kind, KINDS)
        choose("direction", self.direction, ("necessity", "sufficiency"))
        check_screen(self.steps, self.fidelity)

    def __call__(self, experiment: Experiment) -> LayerScores:
        """Scores each layer by its attention's output; see `Localization.__call__`."""
        spec = PatchSpec(direction=self.direction)
        if self.against == "nothing":
            for pair in experiment.pairs:
                self._chosen(experiment, spec.texts(pair)[0])
        return run_screen(experiment, self, spec, partial(one_by_one, partial(self._score_step, experiment)), self.steps, self.fidelity)

    @property
    def not_of_rewritten_text(self) -> str:
        """See `ExperimentMethod.not_of_rewritten_text`."""
        if self.against == "nothing":
            return ""
        return "What a layer reads of the other prompt is known in a run of it alone; against='nothing' asks for none"

    def plan(self, experiment: Experiment) -> Plan:
        """See `Localization.plan`; an upper bound: each attention is computed twice more, and is less than the whole row."""
        return plan_screen(experiment, self, lambda _step: _MOST_NFE[self.against], is_bound=True)

    def _score_step(self, experiment: Experiment, forcing: TeacherForcing, step: TargetedStep) -> Float[np.ndarray, "layer"]:
        """The layers' shares of all norms at one step; NaN where all norms are 0."""
        if self.against == "nothing":
            chosen = torch.from_numpy(self._chosen(experiment, step.texts[0]))
            norms = for_each_attention(forcing, step.step, lambda attention: _norm(attention.from_tokens(chosen)))
        else:
            norms = for_each_attention(forcing, step.step, lambda attention: _change(attention, step.target))
        return np.array(norms) / (sum(norms) or np.nan)

    def _chosen(self, experiment: Experiment, prompt: str) -> Bool[np.ndarray, "token"]:
        """Which tokens of a prompt count as the concept's; raises InvalidInput where none does."""
        chosen = np.isin(experiment.graph.text.kinds_of_tokens([prompt], experiment.name)[0], self.tokens)
        if not chosen.any():
            kinds = " or ".join(self.tokens)
            raise InvalidInput(
                f"the prompt {prompt!r} has no {kinds} token of {experiment.name!r}; choose other tokens, or against='other'"
            )
        return chosen


def _change(attention: LocalAttention, target: Conditions) -> float:
    """The norm of the output's change with the target's prompt, in the output's units; 0 where it is no more than rounding."""
    output = attention.output
    moved = _norm(attention.of(target) - output)
    return moved if moved > _ROUNDING * _norm(output) else 0.0


def _norm(output: Float[torch.Tensor, "row ... channel"]) -> float:
    """The Euclidean norm over channels, in float64, averaged over rows and the image's positions."""
    return float(output.double().norm(dim=-1).mean())
