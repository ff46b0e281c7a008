"""Exact ablation of neurons: each alone reads another prompt, and the image shows whether it controls the concept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch

from neuroscope.core import checks
from neuroscope.core.conditions import Conditions, Rows
from neuroscope.core.effects import Effects, Patch
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.intervention import check_schedule_part
from neuroscope.core.scores import Neurons, NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, PatchRunner, PatchSpec, check_roles
from neuroscope.interventions import ContextSwap
from neuroscope.localization._neuron_localization import NeuronLocalization, normal_layers
from neuroscope.pipeline.graph import HookGraph


@dataclass(frozen=True, kw_only=True, repr=False)
class NeuronAblation(NeuronLocalization):
    """The exact effect of every neuron: it alone reads the prompt without the concept while the pipeline runs.

    The reference for all rankings of neurons, and expensive: an image for each neuron (or group), prompt and seed. The
    score is how far the metric falls (or, for a fact with a new answer, rises), in the metric's own units; with `LatentShare` the
    share of the way to the image of the other prompt. What neurons do only together, it does not see.

    Attributes:
        layers: the neurons of these layers; None for all.
        roles: of "key" and "value" sites, or of one of them.
        group: so many neighbours at a time; each gets an equal part of their score.
        rows: "conditional" (the rows that carry the prompt) or "all".
        steps: the part of the denoising schedule in which a neuron reads the other prompt.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    layers: int | tuple[int, ...] | None = None
    roles: str | tuple[str, ...] = ROLES
    group: int = 1
    rows: Rows = "conditional"
    steps: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "layers", normal_layers(self.layers))
        object.__setattr__(self, "roles", check_roles(self.roles))
        if self.group < 1:
            raise InvalidInput(f"group={self.group} is no number of neurons; give 1 or more")
        choose("rows", self.rows, ("conditional", "all"))
        check_schedule_part(self.steps)

    def __call__(self, experiment: Experiment) -> NeuronScores:
        """See `Localization`."""
        sites = self.sites(experiment)
        parts = list(self._parts(sites))
        with metered(experiment.graph.denoiser) as meter:
            effects = self.measure(experiment, parts)
        experiment.warn_of_no_change(effects)
        sizes = torch.tensor([part.count for part in parts])
        scores = torch.from_numpy(effects.means()) / sizes
        return replace(self.scores(experiment, sites, scores.repeat_interleave(sizes)), cost=meter.cost)

    def measure(self, experiment: Experiment, parts: Sequence[Neurons]) -> Effects:
        """The effect of each of these parts, which are neighbours within one site, on every prompt and seed."""
        by_patch = {self._probe(experiment, part): part for part in parts}
        runner = PatchRunner(replace(experiment, keep_images=0), _SwappingNeurons(rows=self.rows, steps=self.steps, neurons=by_patch))
        return runner.measure(list(by_patch))

    def _parts(self, sites: Sites) -> Iterable[Neurons]:
        for site in sites:
            for first in range(0, site.width, self.group):
                yield Neurons({site.path: range(first, min(first + self.group, site.width))}, {site.path: site.width})

    def _probe(self, experiment: Experiment, part: Neurons) -> Patch:
        ((path, chosen),) = part.items()
        site = experiment.graph.sites.at([path])[0]
        return Patch((cast(int, site.layer),), f"{site.role} {_span(chosen)}")


@dataclass(frozen=True, kw_only=True)
class _SwappingNeurons(PatchSpec):
    """Each patch's neurons alone read the other prompt. What one of them does depends on no other, so that none is part of its name."""

    neurons: Mapping[Patch, Neurons] = field(repr=False)

    def swap(self, graph: HookGraph, patch: Patch, other: Conditions) -> ContextSwap:
        """See `PatchSpec`."""
        chosen = self.neurons[patch]
        return ContextSwap(tuple(chosen), other.context, chosen, self.rows, self.steps, pooled=other.pooled)


def _span(chosen: Sequence[int]) -> str:
    first, last = int(np.min(chosen)), int(np.max(chosen))
    return f"{first}-{last}" if last > first else str(first)
