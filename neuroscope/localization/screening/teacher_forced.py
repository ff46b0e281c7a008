"""Teacher forcing: the effect of each layer on single predictions at recorded steps of the unchanged run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.effects import Patch
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.quality import Plan
from neuroscope.generation.experiment import Experiment, Localization
from neuroscope.generation.patch_runner import ROLES, Direction, PatchSpec, check_patch_spec
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.interventions import ContextSwap
from neuroscope.localization.screening.screen import check_screen, plan_screen, run_screen, share
from neuroscope.pipeline.graph import HookGraph


@dataclass(frozen=True, kw_only=True, repr=False)
class TeacherForced(Localization[LayerScores]):
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
        changes = _changes(experiment.graph, self.roles, target, experiment.graph.sites.layers)
        return plan_screen(experiment, self, lambda step: forcing.nfe_of(step, changes))


def forced_shares(
    roles: str | tuple[str, ...],
    forcing: TeacherForcing,
    step: StepInput,
    target: Conditions,
    _texts: tuple[str, str],
    layers: Sequence[int] | None = None,
) -> Float[np.ndarray, "layer"]:
    """Each layer's share of the total effect on one prediction.

    Args:
        roles: swap "key" and "value", or one of them.
        forcing: makes the forced call.
        step: the recorded step.
        target: what patched layers read.
        layers: the layers to score; None for all.

    Returns:
        float64; NaN where there is no total effect.
    """
    predicted = forcing.predict(step, _changes(forcing.graph, roles, target, forcing.graph.sites.layers if layers is None else layers))
    return share(predicted[1:], step.output, predicted[:1])


def _changes(graph: HookGraph, roles: str | tuple[str, ...], target: Conditions, layers: Sequence[int]) -> list[list[ContextSwap]]:
    """What is changed for each prediction: everything, then each layer alone."""
    spec = PatchSpec(roles=roles, rows="all", pooled="own")
    every = graph.sites.where(role=(*ROLES, "pooled")).paths
    total = ContextSwap(every, target.context, rows="all", pooled=target.pooled)
    return [[total], *([spec.swap(graph, Patch((layer,)), target)] for layer in layers)]
