"""Attention contribution: how much of what each layer's attention puts out comes from the concept's tokens."""

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
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.tokens import kinds_of_tokens
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.patch_runner import Direction, PatchSpec
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.localization._localization import Localization
from neuroscope.localization.screening.local_attention import LocalAttention, visit
from neuroscope.localization.screening.screen import check_screen, screened

KINDS = ("start", "before", "subject", "last subject", "after", "eos", "padding")
_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True, repr=False)
class AttentionContribution(Localization[LayerScores]):
    """A screen: the norm of attention × values × output projection that comes from the concept's tokens (Zarei et al. 2025, LocK).

    Averaged over the image's positions, steps, prompts and seeds, as a share of all layers'. It says how much a layer says
    about the concept, not whether the image listens: see `LayerScores.fidelity`.

    Attributes:
        against: "nothing", as published: what the tokens add; or "other": how far what the attention puts out is from what it would
            with the prompt without the concept, at all tokens.
        tokens: against "nothing", the kinds of tokens that count as the concept's, among "start", "before", "subject" (all but its
            last token), "last subject", "after", "eos" and "padding".
        steps: at how many steps, in the middle of as many equal parts of the schedule.
        patch: which run is looked at: "necessity" the one with the concept, "sufficiency" the one without it.
        fidelity: how many layers' exact effects on one image, drawn at random, the scores are compared with; 0 for none.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, a prompt that holds none of the tokens.
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
        """See `Localization`."""
        spec = PatchSpec(direction=self.direction)
        if self.against == "nothing":
            for pair in experiment.pairs:
                self._chosen(experiment, spec.texts(pair)[0])
        return screened(experiment, self, spec, partial(self._look, experiment), self.steps, self.fidelity)

    def _look(
        self, experiment: Experiment, forcing: TeacherForcing, frame: StepInput, other: Conditions, texts: tuple[str, str]
    ) -> Float[np.ndarray, "layer"]:
        if self.against == "nothing":
            chosen = torch.from_numpy(self._chosen(experiment, texts[0]))
            norms = visit(forcing, frame, lambda attention: _norm(attention.from_tokens(chosen)))
        else:
            norms = visit(forcing, frame, lambda attention: _change(attention, other))
        return np.array(norms) / (sum(norms) or np.nan)

    def _chosen(self, experiment: Experiment, prompt: str) -> Bool[np.ndarray, "token"]:
        """Which tokens of a prompt are the concept's."""
        chosen = np.isin(kinds_of_tokens(experiment.graph.text.tokenizer, [prompt], experiment.name)[0], self.tokens)
        if not chosen.any():
            kinds = " or ".join(self.tokens)
            raise InvalidInput(
                f"the prompt {prompt!r} has no {kinds} token of {experiment.name!r}; choose other tokens, or against='other'"
            )
        return chosen


def _change(attention: LocalAttention, other: Conditions) -> float:
    """The norm of what the other prompt changes; 0 where that is rounding."""
    output = attention.output
    moved = _norm(attention.of(other) - output)
    return moved if moved > _ROUNDING * _norm(output) else 0.0


def _norm(output: Float[torch.Tensor, "row place channel"]) -> float:
    """The norm at each of the image's positions, averaged."""
    return float(output.double().norm(dim=-1).mean())
