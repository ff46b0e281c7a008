"""Attribution patching: all layers' effects on single predictions at once, from gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.attribution.captum_attribution import Kind, attribute
from neuroscope.attribution.patching_metric import PatchingMetric
from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.patch_runner import ROLES, Direction, PatchSpec, check_patch_spec
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.localization._localization import Localization
from neuroscope.localization.screening.local_attention import LocalAttention, visit
from neuroscope.localization.screening.screen import check_screen, screened


@dataclass(frozen=True, kw_only=True, repr=False)
class AttributionPatching(Localization[LayerScores]):
    """A screen: gradients of a prediction, times what the other prompt would change (Nanda 2023; Kramár et al. 2024, AtP*).

    What is attributed is how far the prediction goes towards the one of the prompt without the concept (see `PatchingMetric`). Rows
    are counted as ever, and a row's backward pass as two rows more.

    Attributes:
        samples: at how many points of the way to the other prompt gradients are taken: 1 is the run's own prompt alone, more integrate
            along the way (Sundararajan et al. 2017, with captum), as gradients say little where the model has saturated.
        recomputed: another repair of saturation, for `samples=1`: each layer's attention, softmax included, is computed again
            with the other prompt, and the gradient is taken at what it puts out; else at its keys and values.
        steps: at how many steps, in the middle of as many equal parts of the schedule.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        fidelity: how many layers' exact effects on one image, drawn at random, the scores are compared with; 0 for none.

    Raises:
        InvalidInput: a value that is not allowed, or options that exclude each other.
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
        """See `Localization`."""
        return screened(experiment, self, PatchSpec(direction=self.direction), self._look, self.steps, self.fidelity)

    def _look(self, forcing: TeacherForcing, frame: StepInput, other: Conditions, _texts: tuple[str, str]) -> Float[np.ndarray, "layer"]:
        graph = forcing.graph
        sites = graph.sites.where(role=ROLES)
        way = PatchingMetric(graph, frame, other, sites.paths)
        if not way.length:
            return np.full(len(graph.sites.layers), np.nan)
        if self.recomputed:
            parts = self._at_outputs(forcing, frame, other, way)
        else:
            kind: Kind = "integrated" if self.samples > 1 else "gradient"
            neurons = attribute(way, [graph.module(site) for site in sites], kind, self.samples, _AT_ONCE)
            each = [part.sum().item() for part in neurons.split([site.width for site in sites])]
            parts = [sum(part for site, part in zip(sites, each, strict=True) if site.layer == layer) for layer in graph.sites.layers]
        forcing.rows += 2 * way.differentiated
        return np.array(parts)

    def _at_outputs(self, forcing: TeacherForcing, frame: StepInput, other: Conditions, way: PatchingMetric) -> list[float]:
        outputs = [forcing.graph.module(site) for site in forcing.graph.sites.where(role="output")]

        def change(attention: LocalAttention) -> Tensor:
            return attention.of(other) - attention.output

        changes = visit(forcing, frame, change)
        return _products(way, outputs, changes)


def _products(way: PatchingMetric, outputs: Sequence[nn.Module], changes: Sequence[Tensor]) -> list[float]:
    """Each layer's change of what its attention puts out, times the gradient there."""
    slopes: Any = LayerGradientXActivation(way, list(outputs), multiply_by_inputs=False).attribute(torch.zeros(1, 1))
    tensors = [slope[0] if isinstance(slope, tuple) else slope for slope in slopes]
    return [float((slope.double() * each.double()).sum()) for slope, each in zip(tensors, changes, strict=True)]


_AT_ONCE = 64
