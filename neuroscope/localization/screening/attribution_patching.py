"""Attribution patching: approximate effects of all layers on single predictions at once, from gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from jaxtyping import Float
from torch import Tensor

from neuroscope.attribution.captum_attribution import Kind, attribute
from neuroscope.attribution.patching_metric import PatchingMetric
from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Plan
from neuroscope.generation.experiment import Experiment, Localization
from neuroscope.generation.patch_runner import ROLES, Direction, PatchSpec, check_patch_spec
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.localization.screening.local_attention import for_each_attention
from neuroscope.localization.screening.screen import TargetedStep, check_screen, one_by_one, plan_screen, run_screen

#: How many rows without gradients a batch may have.
_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True, repr=False)
class AttributionPatching(Localization):
    """A screen: gradients of a prediction, times the change that the other prompt makes (Nanda 2023; Kramár et al. 2024, AtP*).

    What is attributed is the total effect on the prediction; see `PatchingMetric`. The cost counts a row's backward pass as two NFE more.

    Attributes:
        samples: at how many points of the line from source to target gradients are taken. With 1 this is the source alone. More integrate
            along the line (Sundararajan et al. 2017, with captum), which helps where the model saturates and single gradients vanish.
        recomputed: another remedy for saturation, for `samples=1`. Each layer's attention, softmax included, is computed again with the
            target's prompt, and the gradient is taken at the attention's output instead of at its keys and values.
        steps: at how many steps: the middles of as many equal parts of the schedule.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        fidelity: for how many layers the exact effect on one image, drawn at random, is measured too; 0 for none.

    Raises:
        InvalidInput: a value that is not allowed, or options that exclude each other; when it runs, more steps or layers than there are.
    """

    samples: int = 4
    recomputed: bool = False
    steps: int = 3
    direction: Direction = "necessity"
    fidelity: int = 6

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        check_patch_spec(ROLES, self.direction)
        check_screen(self.steps, self.fidelity)
        if self.samples < 1:
            raise InvalidInput(f"samples={self.samples} takes no gradient; give 1 or more")
        if self.recomputed and self.samples > 1:
            raise InvalidInput(f"recomputed attention is one way to repair saturation and samples={self.samples} another; give samples=1")

    def __call__(self, experiment: Experiment) -> LayerScores:
        """Scores each layer by gradients of single predictions; see `Localization.__call__`."""
        scorer = partial(one_by_one, self._score_step)
        return run_screen(experiment, self, PatchSpec(direction=self.direction), scorer, self.steps, self.fidelity)

    @property
    def not_of_rewritten_text(self) -> str:
        """See `ExperimentMethod.not_of_rewritten_text`."""
        return "Its line from source to target is one of keys and values that prompts give, and there the image moves both"

    def plan(self, experiment: Experiment) -> Plan:
        """See `Localization.plan`; an upper bound, as steps at which the target's prompt changes nothing cost less."""
        whole = 3.0 + 3 * self.samples  # the total effect and both ends; a backward pass counts as two
        return plan_screen(experiment, self, lambda _step: whole + 5.0 * self.recomputed, is_bound=True)

    def _score_step(self, forcing: TeacherForcing, targeted: TargetedStep) -> Float[np.ndarray, "layer"]:
        """The layers' gradients at one step, times the change; NaN where there is no total effect."""
        graph, step, target = forcing.graph, targeted.step, targeted.target
        sites = graph.sites.where(role=ROLES)
        metric = PatchingMetric(graph, step, target, sites.paths)
        if not metric.length:
            return np.full(len(graph.sites.layers), np.nan)
        if self.recomputed:
            parts = _at_outputs(forcing, step, target, metric)
        else:
            kind: Kind = "integrated" if self.samples > 1 else "gradient"
            neurons = attribute(metric, [graph.module(site) for site in sites], kind, self.samples, _BATCH_SIZE)
            by_site = [part.sum().item() for part in neurons.split([site.width for site in sites])]
            parts = [sum(part for site, part in zip(sites, by_site, strict=True) if site.layer == layer) for layer in graph.sites.layers]
        forcing.nfe += 2 * metric.rows_with_gradients
        return np.array(parts)


def _at_outputs(forcing: TeacherForcing, step: StepInput, target: Conditions, metric: PatchingMetric) -> list[float]:
    """For each layer the change of its attention's output with the target's prompt, times the gradient there.

    part = Σ (o' - o) · ∂m/∂o at the source, with the metric m and the layer's output o. The softmax is computed with the target's
    keys, so that its saturation does not hide their effect (the remedy of Kramár et al. 2024 for queries and keys).

    Returns:
        One number a layer, in shares of the total effect.
    """
    outputs = [forcing.graph.module(site) for site in forcing.graph.sites.where(role="output")]
    changes: list[Tensor] = for_each_attention(forcing, step, lambda attention: attention.of(target) - attention.output)
    slopes: Any = LayerGradientXActivation(metric, outputs, multiply_by_inputs=False).attribute(torch.zeros(1, 1))
    tensors = [slope[0] if isinstance(slope, tuple) else slope for slope in slopes]
    return [float((slope.double() * change.double()).sum()) for slope, change in zip(tensors, changes, strict=True)]
