"""Halving: windows of half of the network, then halves of the winner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.effects import Effects, Probe
from neuroscope.core.errors import InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.generation.experiment import Study
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, Direction, Prober, Swapping, check_swapping, split
from neuroscope.localization._localization import Localization


@dataclass(frozen=True, kw_only=True, repr=False)
class Halving(Localization[LayerScores]):
    """Group testing (Dorfman 1943): all layers are halved again and again, and halves that do much are followed.

    Where one layer carries a concept this takes two pictures for each doubling of the layers instead of one a layer. Where
    two halves both matter, both are followed; where neither does what they did together, their layers stay one window, and
    score what they do together. Layers of a half that is not followed share its effect equally.

    Attributes:
        follow: the share of the stronger half's effect from which on the weaker half is followed too.
        together: the share of a window's effect that its stronger half needs, so that the window is split.
        roles: swap "key" and "value", or one of them.
        probe: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    follow: float = 0.5
    together: float = 0.3
    roles: str | tuple[str, ...] = ROLES
    probe: Direction = "necessity"

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "roles", check_swapping(self.roles, self.probe))
        for name in ("follow", "together"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidInput(f"{name}={getattr(self, name)} is no share of an effect; give more than 0 and at most 1")

    def __call__(self, study: Study) -> LayerScores:
        """See `Localization`."""
        with metered(study.graph.denoiser) as meter:
            prober = Prober(study, Swapping(roles=self.roles, probe=self.probe))
            whole = Probe(study.graph.sites.layers)
            kept, left = self._searched(prober, whole)
            known = prober.measure([*kept, *left, *prober.beside])
        study.warn_of_no_change(known)
        sheet = prober.measured.sheet(study, known.probes)
        return LayerScores.of(_shared_out(known, left), provenance=study.provenance(self), cost=meter.cost, **sheet)

    def _searched(self, prober: Prober, whole: Probe) -> tuple[list[Probe], list[Probe]]:
        """The layers and windows at which the search ends, and the windows that it left aside."""
        (effect,) = prober.measure([whole]).means()
        following = [(whole, float(effect))]
        kept: list[Probe] = []
        left: list[Probe] = []
        while following:
            window, effect = following.pop(0)
            halves = [Probe(part) for part in split(window.layers, 2)] if len(window.layers) > 1 else []
            means = prober.measure(halves).means().tolist() if halves else [0.0]
            if effect <= 0 or max(means) < self.together * effect:
                kept.append(window)
                continue
            for half, mean in zip(halves, means, strict=True):
                if mean >= self.follow * max(means):
                    following.append((half, float(mean)))
                else:
                    left.append(half)
        return kept, left


def _shared_out(known: Effects, left: list[Probe]) -> Effects:
    """Effects in which the layers of windows that were left aside share the window's equally."""
    values: dict[Probe, Tensor] = {}
    for probe, effects in zip(known.probes, known.values, strict=True):
        each = [Probe((layer,)) for layer in probe.layers] if probe in left else [probe]
        values |= {part: effects / len(each) for part in each}
    return Effects(tuple(values), known.prompts, known.seeds, torch.stack(list(values.values())), known.full)
