"""Racing: layers drop out once they are unlikely to win, first in short runs, then in whole ones."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.effects import Effects, Patch
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import MAX_SCREEN_CONFIDENCE, Confidence, Plan, p_minority, p_rank_reversal, p_tie
from neuroscope.generation.dry_run import plan_patches
from neuroscope.generation.experiment import Experiment, Localization
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, Direction, PatchRunner, PatchSpec, check_patch_spec, random_order


@dataclass(frozen=True, kw_only=True, repr=False)
class Racing(Localization):
    """Hoeffding races (Maron and Moore 1994) over layers, with Student's t for the bounds.

    All layers start, on images in a random order. After 2, 4, 8, … images, a layer drops out once its chance of being stronger than the
    best on all images is below `error`, shared among the layers. The first race uses runs with few steps; its finalists race again with
    all steps. A layer that matters only in whole runs can lose the first race, so the confidence is capped at 90 %.

    Attributes:
        error: the chance of dropping a layer that should win.
        step_fraction: the share of the schedule's steps that runs of the first race have.
        finalists: how many layers may enter the second race. The first race continues until no more are left, or its images end.
        roles: swap "key" and "value", or one of them.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        seed: of the random order in which prompts and seeds are taken.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, a schedule that is given step by step.
    """

    of_rewritten_text: ClassVar[bool] = True

    error: float = 0.05
    step_fraction: float = 0.25
    finalists: int = 3
    roles: str | tuple[str, ...] = ROLES
    direction: Direction = "necessity"
    seed: int = 0

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "roles", check_patch_spec(self.roles, self.direction))
        checks.whole("seed", self.seed, least=0)
        if not 0 < self.error < 1:
            raise InvalidInput(f"error={self.error} is no chance; give more than 0 and less than 1, such as 0.05")
        if not 0 < self.step_fraction <= 1:
            raise InvalidInput(f"step_fraction={self.step_fraction} is no share of the steps; give more than 0 and at most 1")
        if self.finalists < 1:
            raise InvalidInput(f"finalists={self.finalists} lets no layer win; give 1 or more")

    def __call__(self, experiment: Experiment) -> LayerScores:
        """Scores each layer by the images of its races; see `Localization.__call__`."""
        layers = [Patch((layer,)) for layer in experiment.graph.sites.layers]
        spec = PatchSpec(roles=self.roles, direction=self.direction)
        with metered(experiment.graph.denoiser) as meter:
            order = random_order(experiment, self.seed)
            experiment = replace(experiment, shown=tuple(order[: len(experiment.pairs)]))
            first, second = PatchRunner(self._shortened(experiment), spec), PatchRunner(experiment, spec)
            running, _ = self._race(first, layers, self.finalists)
            finalists = sorted(running, key=lambda each: -first.effects([each]).means()[0])[: self.finalists]
            _, count = self._race(second, finalists, 1)
            most = 1.0 if len(finalists) == len(layers) else MAX_SCREEN_CONFIDENCE
            probability = min(self._probability(second, finalists, count), most)
            second.measure(second.beside, order[:count])
        effects = _joined(first.effects(layers), second.effects([*finalists, *second.beside]))
        experiment.warn_of_no_change(effects)
        measured = tuple(sorted(each.layers[0] for each in finalists))
        confidence = Confidence(probability, measured, count, len(experiment.image_keys))
        sheet = second.measured.sheet([*finalists, *second.beside])
        return LayerScores.of(effects, provenance=experiment.provenance(self), cost=meter.cost, confidence=confidence, **sheet)

    def plan(self, experiment: Experiment) -> Plan:
        """See `Localization.plan`; an upper bound: all layers in both races on all images."""
        layers = len(experiment.graph.sites.layers)
        first = plan_patches(self._shortened(experiment), layers, beside=False)
        second = plan_patches(experiment, min(self.finalists, layers))
        return Plan(first.images + second.images, first.nfe + second.nfe, is_bound=True)

    def _shortened(self, experiment: Experiment) -> Experiment:
        """The experiment of the first race; raises InvalidInput for a schedule that is given step by step."""
        if given := sorted({"timesteps", "sigmas"} & set(experiment.generation)):
            raise InvalidInput(f"a schedule given by {given[0]} cannot be shortened for the first race; give num_inference_steps instead")
        default = inspect.signature(experiment.graph.pipe.__call__).parameters["num_inference_steps"].default
        steps = experiment.generation.get("num_inference_steps", default)
        return experiment.of(num_inference_steps=max(1, round(self.step_fraction * steps)))

    def _race(self, runner: PatchRunner, layers: list[Patch], wanted: int) -> tuple[list[Patch], int]:
        """Runs one race.

        Args:
            runner: makes the runs.
            layers: the starters.
            wanted: the race ends once no more layers than this are left, or its images end.

        Returns:
            The layers that are left, and the number of images that they ran on.
        """
        order, count, running = random_order(runner.experiment, self.seed), 2, list(layers)
        while True:
            effects = runner.measure(running, order[:count])
            best = int(np.argmax(effects.means()))
            chances = [_p_ahead(effects, rival, best, len(order)) for rival in range(len(running))]
            running = [each for each, chance in zip(running, chances, strict=True) if chance > self.error / len(layers)]
            if len(running) <= wanted or count >= len(order):
                return running, min(count, len(order))
            count *= 2

    def _probability(self, runner: PatchRunner, layers: list[Patch], count: int) -> float:
        """A lower bound of the chance that the winner is the best layer, if short runs rank layers as whole runs do."""
        effects, order = runner.effects(layers), random_order(runner.experiment, self.seed)
        of, prompts = len(order), len({pair for pair, _ in order[:count]})
        best = int(np.argmax(effects.means()))
        chances = [_p_ahead(effects, rival, best, of) for rival in range(len(layers)) if rival != best]
        unrepresentative = max(p_minority(count, of), p_tie(prompts, len(runner.experiment.pairs)))
        return max(0.0, 1 - max(unrepresentative, 2 * self.error + sum(chances)))


def _p_ahead(effects: Effects, rival: int, best: int, of: int) -> float:
    """The chance that a rival's mean over all images is above that of the best; 1 for the best itself.

    Args:
        effects: NaN where a layer was not measured.
        rival: its number among the patches.
        best: the number of the strongest patch.
        of: the number of all images.
    """
    if rival == best:
        return 1.0
    differences = (effects.values[best] - effects.values[rival]).numpy().ravel()
    return p_rank_reversal(differences[~np.isnan(differences)], of)


def _joined(first: Effects, second: Effects) -> Effects:
    """The effects of the second race. A layer that dropped out in the first keeps its distance from the winner there."""
    short = dict(zip(first.patches, first.values, strict=True))
    whole = dict(zip(second.patches, second.values, strict=True))
    winner = max((patch for patch in whole if patch.layers), key=lambda patch: second.means()[second.patches.index(patch)])
    gained = whole[winner].nanmean() - short[winner].nanmean()
    values = {patch: each + gained.nan_to_num() for patch, each in short.items()} | whole
    return replace(second, patches=tuple(values), values=torch.stack(list(values.values())))
