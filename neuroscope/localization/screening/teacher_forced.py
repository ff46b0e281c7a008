"""Teacher forcing: the effect of each layer on single predictions at recorded steps of the unchanged run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.results.effects import Patch
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Plan
from neuroscope.generation.experiment import Experiment, Localization
from neuroscope.generation.patch_runner import ROLES, Direction, PatchSpec, check_patch_spec
from neuroscope.generation.teacher_forcing import TeacherForcing
from neuroscope.interventions import ContextSwap
from neuroscope.localization.screening.screen import TargetedStep, check_screen, plan_screen, run_screen, share
from neuroscope.pipeline.graph import HookGraph


@dataclass(frozen=True, kw_only=True, repr=False)
class TeacherForced(Localization):
    """A screen: at a few steps of the unchanged run, each layer is patched alone for one prediction.

    A layer's score is the projection of its effect on the total effect, that of all layers and the pooled text: from 0 to 1.
    `LayerScores.grid` gives the layer × step heatmap. Only conditional rows are computed, and the part of the network before a patched
    layer only once. A layer's effect on one prediction may differ from its effect on the image: see `LayerScores.fidelity`.

    Attributes:
        steps: at how many steps: the middles of as many equal parts of the schedule.
        roles: swap "key" and "value", or one of them.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        fidelity: for how many layers the exact effect on one image, drawn at random, is measured too; 0 for none.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, more steps or layers than there are.
    """

    of_rewritten_text: ClassVar[bool] = True

    steps: int = 3
    roles: str | tuple[str, ...] = ROLES
    direction: Direction = "necessity"
    fidelity: int = 6

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "roles", check_patch_spec(self.roles, self.direction))
        check_screen(self.steps, self.fidelity)

    def __call__(self, experiment: Experiment) -> LayerScores:
        """Scores each layer on single predictions; see `Localization.__call__`."""
        spec = PatchSpec(roles=self.roles, direction=self.direction)
        return run_screen(experiment, self, spec, partial(forced_shares, self.roles), self.steps, self.fidelity)

    def plan(self, experiment: Experiment) -> Plan:
        """See `Localization.plan`."""
        forcing = TeacherForcing(experiment.graph)
        target = experiment.graph.text.conditions([experiment.pairs[0].absent])
        changes = _changes(self.roles, experiment.graph, target, experiment.graph.sites.layers)
        return plan_screen(experiment, self, lambda step: forcing.nfe_of(step, changes))


def forced_shares(
    roles: str | tuple[str, ...], forcing: TeacherForcing, steps: Sequence[TargetedStep], layers: Sequence[int] | None = None
) -> list[Float[np.ndarray, "layer"]]:
    """Each layer's share of the total effect on single predictions; a `StepScorer`. Steps of several images share calls.

    With the recorded prediction s, the prediction p of a patched layer, and t of the total patch: <p - s, t - s> / ‖t - s‖².
    Shares of all layers add up to 1 only where the layers' effects are additive.

    Args:
        roles: swap "key" and "value", or one of them.
        forcing: makes the forced calls.
        steps: the recorded steps, and what patched layers read.
        layers: the layers to score; None for all.

    Returns:
        For each step, float64; NaN where there is no total effect.
    """
    scored = forcing.graph.sites.layers if layers is None else layers
    changes = [_changes(roles, forcing.graph, each.target, scored) for each in steps]
    predicted = forcing.predict_each([each.step for each in steps], changes, forcing.progress)
    return [share(every[1:], each.step.output, every[:1]) for each, every in zip(steps, predicted, strict=True)]


def _changes(roles: str | tuple[str, ...], graph: HookGraph, target: Conditions, layers: Sequence[int]) -> list[list[ContextSwap]]:
    """The total effect's change, then each layer's own."""
    spec = PatchSpec(roles=roles, rows="all", pooled="own")
    every = graph.sites.where(role=(*ROLES, "pooled")).paths
    total = ContextSwap.reading(target, every, rows="all")
    return [[total], *([spec.swap(graph, Patch((layer,)), target)] for layer in layers)]
