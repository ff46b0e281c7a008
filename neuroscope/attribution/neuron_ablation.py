"""Exact ablation of neurons: each alone reads the prompt without the concept, and the change of the image is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import numpy as np
import torch

from neuroscope.attribution._causal_attribution import CausalAttribution
from neuroscope.core import checks
from neuroscope.core.conditions import Conditions, Rows
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.intervention import check_schedule_part
from neuroscope.core.results.effects import Effects, Patch
from neuroscope.core.results.quality import Plan
from neuroscope.core.results.scores import Neurons, NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.generation.dry_run import plan_patches
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, PatchRunner, PatchSpec, check_roles
from neuroscope.interventions import ContextSwap
from neuroscope.pipeline.graph import HookGraph


@dataclass(frozen=True, kw_only=True, repr=False)
class NeuronAblation(CausalAttribution):
    """The exact effect of every neuron: it alone reads the prompt without the concept while the pipeline runs.

    This is the reference for rankings of neurons, and expensive: it makes an image for each neuron (or group), prompt and seed. A
    neuron's score is how far the metric moves towards its value for the prompt without the concept, in the metric's own units; with
    `LatentShare`, as a share of the total effect. Neurons that act only together are missed.

    Attributes:
        roles: score the neurons of "key" and "value" sites, or of one of them.
        group: ablate so many neighbours at a time; each gets an equal part of their score.
        rows: "conditional" (the rows that carry the prompt) or "all".
        steps: the part of the denoising schedule in which a neuron reads the other prompt, from 0.0 to 1.0.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    of_rewritten_text: ClassVar[bool] = True

    roles: str | tuple[str, ...] = ROLES
    group: int = 1
    rows: Rows = "conditional"
    steps: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "roles", check_roles(self.roles))
        if self.group < 1:
            raise InvalidInput(f"group={self.group} is no number of neurons; give 1 or more")
        choose("rows", self.rows, ("conditional", "all"))
        check_schedule_part(self.steps)

    def __call__(self, experiment: Experiment) -> NeuronScores:
        """Scores each neuron by images in which it alone is ablated; see `CausalAttribution.__call__`."""
        sites = self.sites(experiment)
        parts = list(self._parts(sites))
        with metered(experiment.graph.denoiser) as meter:
            effects = self.measure(experiment, parts)
        experiment.warn_of_no_change(effects)
        sizes = torch.tensor([part.count for part in parts])
        scores = torch.from_numpy(effects.means()) / sizes
        return replace(self.scores(experiment, sites, scores.repeat_interleave(sizes)), cost=meter.cost)

    @property
    def not_sharded(self) -> str:
        """See `ExperimentMethod.not_sharded`; all its images are known."""
        return ""

    def plan(self, experiment: Experiment) -> Plan:
        """See `Localization.plan`."""
        return plan_patches(experiment, len(list(self._parts(self.sites(experiment)))), beside=False)

    def measure(self, experiment: Experiment, parts: Sequence[Neurons]) -> Effects:
        """The effects of sets of neurons on every prompt and seed.

        Args:
            experiment: the prompts, seeds and metric.
            parts: each set holds neighbouring neurons of one site.
        """
        by_patch = {self._patch(experiment, part): part for part in parts}
        runner = PatchRunner(replace(experiment, keep_images=0), _NeuronPatchSpec(rows=self.rows, steps=self.steps, neurons=by_patch))
        return runner.measure(list(by_patch))

    def _parts(self, sites: Sites) -> Iterable[Neurons]:
        for site in sites:
            for first in range(0, site.width, self.group):
                yield Neurons({site.path: range(first, min(first + self.group, site.width))}, {site.path: site.width})

    def _patch(self, experiment: Experiment, part: Neurons) -> Patch:
        ((path, chosen),) = part.items()
        site = experiment.graph.sites.at([path])[0]
        return Patch((cast(int, site.layer),), f"{site.role} {_span(chosen)}")


@dataclass(frozen=True, kw_only=True)
class _NeuronPatchSpec(PatchSpec):
    """Each patch swaps the context of its neurons alone.

    The neurons are left out of the repr: the effect of one patch does not depend on which others are measured, so that a ledger may hold
    it for any set of them.
    """

    neurons: Mapping[Patch, Neurons] = field(repr=False)

    def swap(self, graph: HookGraph, patch: Patch, target: Conditions) -> ContextSwap:
        """The intervention of a patch: its neurons read the target prompt's context."""
        chosen = self.neurons[patch]
        return ContextSwap.reading(target, tuple(chosen), neurons=chosen, rows=self.rows, steps=self.steps)


def _span(chosen: Sequence[int]) -> str:
    first, last = int(np.min(chosen)), int(np.max(chosen))
    return f"{first}-{last}" if last > first else str(first)
