"""Racing: layers drop out as soon as they cannot win, first in short runs, then in whole ones."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import numpy as np
import torch

from neuroscope.core import checks
from neuroscope.core.effects import Effects, Patch
from neuroscope.core.errors import InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.quality import MAX_SCREEN_CONFIDENCE, Confidence, p_minority, p_rank_reversal, p_tie
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, Direction, PatchRunner, PatchSpec, check_patch_spec, drawn
from neuroscope.localization._localization import Localization


@dataclass(frozen=True, kw_only=True, repr=False)
class Racing(Localization[LayerScores]):
    """Hoeffding races (Maron and Moore 1994) over layers, with Student's t for the bounds.

    All layers start, on images in a random order. After 2, 4, 8, … images, those drop out that are stronger than the best on all
    images with a chance below `out`, shared among them. The first race is of runs with few steps; its finalists race again with all
    steps. A layer that matters in whole runs alone can lose the first race, so the confidence is at most 90 %.

    Attributes:
        out: the chance of dropping a layer that should win.
        short: the share of the schedule's steps that the first race takes.
        finalists: how many layers may enter the second race; the first goes on until no more are left, or its images end.
        roles: swap "key" and "value", or one of them.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        seed: of the random order in which prompts and seeds are taken.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, a schedule that is given step by step.
    """

    out: float = 0.05
    short: float = 0.25
    finalists: int = 3
    roles: str | tuple[str, ...] = ROLES
    direction: Direction = "necessity"
    seed: int = 0

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "roles", check_patch_spec(self.roles, self.direction))
        checks.whole("seed", self.seed, least=0)
        if not 0 < self.out < 1:
            raise InvalidInput(f"out={self.out} is no chance; give more than 0 and less than 1, such as 0.05")
        if not 0 < self.short <= 1:
            raise InvalidInput(f"short={self.short} is no share of the steps; give more than 0 and at most 1")
        if self.finalists < 1:
            raise InvalidInput(f"finalists={self.finalists} lets no layer win; give 1 or more")

    def __call__(self, experiment: Experiment) -> LayerScores:
        """See `Localization`."""
        layers = [Patch((layer,)) for layer in experiment.graph.sites.layers]
        spec = PatchSpec(roles=self.roles, direction=self.direction)
        with metered(experiment.graph.denoiser) as meter:
            order = drawn(experiment, self.seed)
            experiment = replace(experiment, shown=tuple(order[: len(experiment.pairs)]))
            heat, final = PatchRunner(self._shortened(experiment), spec), PatchRunner(experiment, spec)
            running, _ = self._race(heat, layers, self.finalists)
            strongest = sorted(running, key=lambda each: -heat.effects([each]).means()[0])[: self.finalists]
            _, count = self._race(final, strongest, 1)
            sure = min(self._sure(final, strongest, count), 1.0 if len(strongest) == len(layers) else MAX_SCREEN_CONFIDENCE)
            final.measure(final.beside, order[:count])
        effects = _joined(heat.effects(layers), final.effects([*strongest, *final.beside]))
        experiment.warn_of_no_change(effects)
        alone = tuple(sorted(each.layers[0] for each in strongest))
        confidence = Confidence(sure, alone, count, len(experiment.image_keys))
        sheet = final.measured.sheet(experiment, [*strongest, *final.beside])
        return LayerScores.of(effects, provenance=experiment.provenance(self), cost=meter.cost, confidence=confidence, **sheet)

    def _shortened(self, experiment: Experiment) -> Experiment:
        if given := sorted({"timesteps", "sigmas"} & set(experiment.generation)):
            raise InvalidInput(f"a schedule given by {given[0]} cannot be shortened for the first race; give num_inference_steps instead")
        default = inspect.signature(experiment.graph.pipe.__call__).parameters["num_inference_steps"].default
        steps = experiment.generation.get("num_inference_steps", default)
        return experiment.of(num_inference_steps=max(1, round(self.short * steps)))

    def _race(self, runner: PatchRunner, layers: list[Patch], wanted: int) -> tuple[list[Patch], int]:
        """The layers that are left, at most `wanted` unless the images end; and on how many images they ran."""
        order, count, running = drawn(runner.experiment, self.seed), 2, list(layers)
        while True:
            effects = runner.measure(running, order[:count])
            means = effects.means()
            best = int(np.argmax(means))
            ahead = [self._reverse(effects, best, rival, len(order)) for rival in range(len(running))]
            running = [each for each, chance in zip(running, ahead, strict=True) if chance > self.out / len(layers)]
            if len(running) <= wanted or count >= len(order):
                return running, min(count, len(order))
            count *= 2

    def _reverse(self, effects: Effects, best: int, rival: int, of: int) -> float:
        if rival == best:
            return 1.0
        differences = (effects.values[best] - effects.values[rival]).numpy().ravel()
        return p_rank_reversal(differences[~np.isnan(differences)], of)

    def _sure(self, runner: PatchRunner, layers: list[Patch], count: int) -> float:
        """How sure both races are of the winner, if short runs say what whole ones do."""
        effects, order = runner.effects(layers), drawn(runner.experiment, self.seed)
        of, prompts = len(order), len({pair for pair, _ in order[:count]})
        best = int(np.argmax(effects.means()))
        chances = [self._reverse(effects, best, rival, of) for rival in range(len(layers)) if rival != best]
        misled = max(p_minority(count, of), p_tie(prompts, len(runner.experiment.pairs)))
        return max(0.0, 1 - max(misled, 2 * self.out + sum(chances)))


def _joined(heat: Effects, final: Effects) -> Effects:
    """The second race's effects; of layers that were not in it the first's, as far from the winner's as they were there."""
    first = dict(zip(heat.patches, heat.values, strict=True))
    second = dict(zip(final.patches, final.values, strict=True))
    winner = max((patch for patch in second if patch.layers), key=lambda patch: final.means()[final.patches.index(patch)])
    gained = second[winner].nanmean() - first[winner].nanmean()
    values = {patch: each + gained.nan_to_num() for patch, each in first.items()} | second
    return replace(final, patches=tuple(values), values=torch.stack(list(values.values())))
