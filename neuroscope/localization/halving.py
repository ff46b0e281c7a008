"""Halving: windows of half of the network, then halves of the winner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.effects import Effects, Patch
from neuroscope.core.errors import InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, Direction, PatchRunner, PatchSpec, check_patch_spec, split
from neuroscope.localization._localization import Localization


@dataclass(frozen=True, kw_only=True, repr=False)
class Halving(Localization[LayerScores]):
    """RunBatch testing (Dorfman 1943): all layers are halved again and again, and halves that do much are followed.

    Where one layer carries a concept this takes two images for each doubling of the layers instead of one a layer. Where
    two halves both matter, both are followed; where neither does what they did together, their layers stay one window, and
    score what they do together. Layers of a half that is not followed share its effect equally.

    Attributes:
        follow: the share of the stronger half's effect from which on the weaker half is followed too.
        together: the share of a window's effect that its stronger half needs, so that the window is split.
        roles: swap "key" and "value", or one of them.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    follow: float = 0.5
    together: float = 0.3
    roles: str | tuple[str, ...] = ROLES
    direction: Direction = "necessity"

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "roles", check_patch_spec(self.roles, self.direction))
        for name in ("follow", "together"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidInput(f"{name}={getattr(self, name)} is no share of an effect; give more than 0 and at most 1")

    def __call__(self, experiment: Experiment) -> LayerScores:
        """See `Localization`."""
        with metered(experiment.graph.denoiser) as meter:
            runner = PatchRunner(experiment, PatchSpec(roles=self.roles, direction=self.direction))
            whole = Patch(experiment.graph.sites.layers)
            kept, left = self._searched(runner, whole)
            known = runner.measure([*kept, *left, *runner.beside])
        experiment.warn_of_no_change(known)
        sheet = runner.measured.sheet(experiment, known.patches)
        return LayerScores.of(_shared_out(known, left), provenance=experiment.provenance(self), cost=meter.cost, **sheet)

    def _searched(self, runner: PatchRunner, whole: Patch) -> tuple[list[Patch], list[Patch]]:
        """The layers and windows at which the search ends, and the windows that it left aside."""
        (effect,) = runner.measure([whole]).means()
        following = [(whole, float(effect))]
        kept: list[Patch] = []
        left: list[Patch] = []
        while following:
            window, effect = following.pop(0)
            halves = [Patch(part) for part in split(window.layers, 2)] if len(window.layers) > 1 else []
            means = runner.measure(halves).means().tolist() if halves else [0.0]
            if effect <= 0 or max(means) < self.together * effect:
                kept.append(window)
                continue
            for half, mean in zip(halves, means, strict=True):
                if mean >= self.follow * max(means):
                    following.append((half, float(mean)))
                else:
                    left.append(half)
        return kept, left


def _shared_out(known: Effects, left: list[Patch]) -> Effects:
    """Effects in which the layers of windows that were left aside share the window's equally."""
    values: dict[Patch, Tensor] = {}
    for patch, effects in zip(known.patches, known.values, strict=True):
        each = [Patch((layer,)) for layer in patch.layers] if patch in left else [patch]
        values |= {part: effects / len(each) for part in each}
    return Effects(tuple(values), known.prompts, known.seeds, torch.stack(list(values.values())), known.total)
