"""LOCOGEN: windows of layers read another prompt, and the picture shows whether they control the concept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from neuroscope._errors import InvalidInput, choose
from neuroscope.calls import Rows
from neuroscope.cost import metered
from neuroscope.effects import POOLED, Effects, Probe
from neuroscope.interventions import ContextSwap
from neuroscope.interventions._intervention import check_schedule_part
from neuroscope.layer_scores import LayerScores
from neuroscope.localization._localization import Localization
from neuroscope.localization.study import Case, Group, Measured, Study
from neuroscope.sweep import Row, Sweep

ROLES = ("key", "value")


@dataclass(frozen=True, kw_only=True, repr=False)
class LocoGen(Localization):
    """Localisation by giving windows of adjacent layers another prompt (Basu et al. 2024, LOCOGEN).

    For each window, its layers' keys and values read the prompt without the concept and all others the prompt with it,
    from the same noise. The score is how far the metric falls (or, for a fact with a new answer, rises), in its own units.
    Windows share batches, so that a sweep runs as fast as the bare pipeline.

    Models with a pooled text path get a run more for each picture, in which that path alone reads the other prompt: what
    it carries, no layer can. `LayerScores.pooled_share` reports it.

    Attributes:
        window: how many adjacent layers change together, the same at both ends of the model; or "grow", the paper's
            procedure: 1, and wider until some window has at least `enough` of the effect of changing all layers.
        enough: the share of the full effect at which a growing window or set is large enough.
        search: "windows" of adjacent layers, as published; or "sets", which finds smallest sets of layers, adjacent or not,
            that have `enough` of the full effect, by leaving out parts of all layers (delta debugging, Zeller and Hildebrandt
            2002), and again among the rest while that is enough. `LayerScores.best` is the strongest set; the layers of a set
            score what it does, all others what they do together.
        roles: change "key" and "value", or one of them.
        probe: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        rows: "conditional" (the rows that carry the prompt) or "all".
        steps: the part of the denoising schedule in which the layers read the other prompt.
        parts: cut `steps` into as many equal parts and probe each on its own, for a layer × part grid.
        pooled: which prompt feeds the pooled text path in a window's run: its "own", or the "other", as the window's.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    window: int | Literal["grow"] = 1
    enough: float = 0.5
    search: Literal["windows", "sets"] = "windows"
    roles: str | tuple[str, ...] = ROLES
    probe: Literal["necessity", "sufficiency"] = "necessity"
    rows: Rows = "conditional"
    steps: tuple[float, float] = (0.0, 1.0)
    parts: int = 1
    pooled: Literal["own", "other"] = "own"

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", (self.roles,) if isinstance(self.roles, str) else tuple(self.roles))
        if self.window != "grow" and not (isinstance(self.window, int) and self.window >= 1):
            raise InvalidInput(f'window={self.window!r} is no number of layers; give 1 or more, or "grow"')
        if not 0 < self.enough <= 1:
            raise InvalidInput(f"enough={self.enough} is no share of the full effect; give more than 0 and at most 1")
        if not self.roles:
            raise InvalidInput("roles is empty; give key, value or both")
        for role in self.roles:
            choose("role", role, ROLES)
        choose("search", self.search, ("windows", "sets"))
        if self.search == "sets" and (self.window != 1 or self.parts != 1):
            raise InvalidInput("search='sets' takes layers one by one over the whole of `steps`; leave window and parts at 1")
        choose("probe", self.probe, ("necessity", "sufficiency"))
        choose("rows", self.rows, ("conditional", "all"))
        choose("pooled", self.pooled, ("own", "other"))
        check_schedule_part(self.steps)
        if self.parts < 1:
            raise InvalidInput(f"parts={self.parts} is no number of parts; give 1 or more")

    def __call__(self, study: Study) -> LayerScores:
        """See `Localization`."""
        layers = study.graph.sites.layers
        if self.window != "grow" and self.window > len(layers):
            raise InvalidInput(f"window={self.window} is wider than the model's {len(layers)} layers; give 1 to {len(layers)}")
        with metered(study.graph.denoiser) as meter:
            sweep = study.sweep([text for pair in study.pairs for text in pair])
            measured = Measured()
            search = self._sets if self.search == "sets" else self._windows
            method, probes, effects = search(study, sweep, measured)
        study.warn_of_no_change(effects)
        return LayerScores.of(effects, provenance=study.provenance(method), cost=meter.cost, **measured.sheet(study, probes))

    def _windows(self, study: Study, sweep: Sweep, measured: Measured) -> Found:
        """Windows of one width, or of growing widths until one is wide enough."""
        layers = study.graph.sites.layers
        for width in range(1, len(layers) + 1) if self.window == "grow" else [self.window]:
            method = replace(self, window=width)
            probes = [Probe(layers[first : first + width], part) for first in range(len(layers) - width + 1) for part in self._parts()]
            probes += self._beside(study)
            effects = method._measure(study, sweep, probes, measured)
            if effects.full_mean() <= 0 or self._is_enough(effects):
                break
        return method, probes, effects

    def _sets(self, study: Study, sweep: Sweep, measured: Measured) -> Found:
        """Smallest sets, one after the other, until what is left is not enough."""
        rest = study.graph.sites.layers
        found: list[Probe] = []
        while rest and self._is_enough(self._measure(study, sweep, [Probe(rest)], measured)):
            found.append(Probe(self._shrunk(study, sweep, rest, measured)))
            rest = tuple(layer for layer in rest if layer not in found[-1].layers)
        probes = [*found, *([Probe(rest)] if rest else []), *self._beside(study)]
        return self, probes, self._measure(study, sweep, probes, measured)

    def _shrunk(self, study: Study, sweep: Sweep, layers: tuple[int, ...], measured: Measured) -> tuple[int, ...]:
        """Layers that are enough, with ever finer parts left out as long as the others are."""
        parts = 2
        while len(layers) > 1:
            others = [Probe(tuple(each for each in layers if each not in part)) for part in _split(layers, parts)]
            effects = self._measure(study, sweep, others, measured)
            if self._is_enough(effects):
                layers, parts = others[int(effects.means().argmax())].layers, max(parts - 1, 2)
            elif parts < len(layers):
                parts = min(2 * parts, len(layers))
            else:
                break
        return layers

    def _beside(self, study: Study) -> list[Probe]:
        return [POOLED] if study.graph.sites.where(role="pooled") else []

    def _measure(self, study: Study, sweep: Sweep, probes: Sequence[Probe], measured: Measured) -> Effects:
        study.measure(sweep, [self._group(study, sweep, probes)], self, measured)
        return measured.effects(study, probes, relative=False)

    def _is_enough(self, effects: Effects) -> bool:
        means = [mean for probe, mean in zip(effects.probes, effects.means(), strict=True) if probe.layers]
        return max(means) >= self.enough * effects.full_mean() > 0

    def _group(self, study: Study, sweep: Sweep, probes: Sequence[Probe]) -> Group:
        """The runs of every pair and seed: unchanged, wholly changed, and one for each probe."""
        swaps = {(probe, pair): self._swap(study, sweep, probe, pair) for probe in probes for pair in range(len(study.pairs))}
        return Group({case: self._row(study, case, swaps) for case in study.cases(["base", "goal", *probes])})

    def _row(self, study: Study, case: Case, swaps: dict[tuple[Probe, int], ContextSwap]) -> Row:
        base, goal = self._texts(study, case.pair)
        if isinstance(case.probe, str):
            return Row(base if case.probe == "base" else goal, case.seed)
        return Row(base, case.seed, (swaps[case.probe, case.pair],))

    def _swap(self, study: Study, sweep: Sweep, probe: Probe, pair: int) -> ContextSwap:
        sites = study.graph.sites
        inside = sites.where(layer=probe.layers, role=self.roles).paths
        beside = sites.where(role="pooled").paths if probe == POOLED or self.pooled == "other" else ()
        steps = self.steps if probe == POOLED else self._parts()[probe.part]
        other = sweep.conditions(self._texts(study, pair)[1])
        return ContextSwap([*beside, *inside], other.context, rows=self.rows, steps=steps, pooled=other.pooled)

    def _texts(self, study: Study, pair: int) -> tuple[str, str]:
        present, absent = study.pairs[pair]
        return (present, absent) if self.probe == "necessity" else (absent, present)

    def _parts(self) -> dict[str, tuple[float, float]]:
        """The probed parts of the schedule by name."""
        if self.parts == 1:
            return {"": self.steps}
        edges = np.linspace(*self.steps, self.parts + 1).tolist()
        return {f"{100 * low:.0f}-{100 * high:.0f} %": (low, high) for low, high in itertools.pairwise(edges)}


def _split(layers: tuple[int, ...], parts: int) -> list[tuple[int, ...]]:
    """Layers in runs of about equal length."""
    return [tuple(each.tolist()) for each in np.array_split(np.array(layers), parts)]


Found = tuple[LocoGen, list[Probe], Effects]
