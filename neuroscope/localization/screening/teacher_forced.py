"""Teacher forcing: what each layer does to single predictions on one run's frames."""

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
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.patch_runner import ROLES, Direction, PatchSpec, check_patch_spec
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.interventions import ContextSwap
from neuroscope.localization._localization import Localization
from neuroscope.localization.screening.screen import check_screen, screened, share


@dataclass(frozen=True, kw_only=True, repr=False)
class TeacherForced(Localization[LayerScores]):
    """A screen: each image's run until the last of a few steps; at these, each layer's swap changes the next prediction.

    A layer's share is the projection of that change on the change that spec all layers (and the pooled text) makes:
    0 to 1. `LayerScores.grid` gives the layer × step heatmap. Only rows that carry the prompt are computed, and the part of
    the network before a swapped layer only once. What a layer does to one prediction need not be what it does to an image:
    see `LayerScores.fidelity`.

    Attributes:
        steps: at how many steps, in the middle of as many equal parts of the schedule.
        roles: swap "key" and "value", or one of them.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        fidelity: how many layers' exact effects on one image, drawn at random, the scores are compared with; 0 for none.

    Raises:
        InvalidInput: a value that is not allowed.
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
        """See `Localization`."""
        spec = PatchSpec(roles=self.roles, direction=self.direction)
        return screened(experiment, self, spec, partial(forced_shares, self.roles), self.steps, self.fidelity)


def forced_shares(
    roles: str | tuple[str, ...],
    forcing: TeacherForcing,
    frame: StepInput,
    other: Conditions,
    _texts: tuple[str, str],
    layers: Sequence[int] | None = None,
) -> Float[np.ndarray, "layer"]:
    """Each layer's share at one frame, of these layers or of all."""
    sites = forcing.graph.sites
    swapped = PatchSpec(roles=roles, rows="all", pooled="own")
    every = sites.where(role=(*ROLES, "pooled")).paths
    target = ContextSwap(every, other.context, rows="all", pooled=other.pooled)
    changes = [[target], *([swapped.swap(forcing.graph, Patch((layer,)), other)] for layer in (sites.layers if layers is None else layers))]
    predicted = forcing.predict(frame, changes)
    return share(predicted[1:], frame.output, predicted[:1])
