"""Probing: the runs in which chosen layers of some pictures read another prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from tqdm.auto import tqdm

from neuroscope.core.conditions import Conditions, Rows
from neuroscope.core.effects import CONTROL, POOLED, Effects, Probe
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.generation.batches import Row
from neuroscope.generation.experiment import Case, Group, Measured, Pair, Place, Study
from neuroscope.generation.teacher_forcing import Frame, Steps, following
from neuroscope.interventions import ContextSwap
from neuroscope.pipeline.graph import HookGraph

ROLES = ("key", "value")
Direction = Literal["necessity", "sufficiency"]


@dataclass(frozen=True, kw_only=True)
class Swapping:
    """What a probe does to its layers; see `LocoGen` for the fields."""

    roles: str | tuple[str, ...] = ROLES
    probe: Direction = "necessity"
    rows: Rows = "conditional"
    steps: tuple[float, float] = (0.0, 1.0)
    parts: int = 1
    pooled: Literal["own", "other"] = "own"

    def texts(self, pair: Pair) -> tuple[str, str]:
        """The prompt of the unchanged run, and the one that probed layers read."""
        return (pair.present, pair.absent) if self.probe == "necessity" else (pair.absent, pair.present)

    @property
    def schedule(self) -> dict[str, tuple[float, float]]:
        """The probed parts of the schedule by name."""
        if self.parts == 1:
            return {"": self.steps}
        edges = np.linspace(*self.steps, self.parts + 1).tolist()
        return {f"{100 * low:.0f}-{100 * high:.0f} %": (low, high) for low, high in itertools.pairwise(edges)}

    def swap(self, graph: HookGraph, probe: Probe, other: Conditions) -> ContextSwap:
        """The change of a probe, to what the other prompt says."""
        inside = graph.sites.where(layer=probe.layers, role=self.roles).paths
        beside = graph.sites.where(role="pooled").paths if probe == POOLED or self.pooled == "other" else ()
        steps = self.steps if probe == POOLED else self.schedule[probe.part]
        return ContextSwap([*beside, *inside], other.context, rows=self.rows, steps=steps, pooled=other.pooled)


def check_swapping(roles: str | Sequence[str], probe: Direction) -> tuple[str, ...]:
    """As `check_roles`; raises InvalidInput for an unknown direction as well."""
    choose("probe", probe, get_args(Direction))
    return check_roles(roles)


def check_roles(roles: str | Sequence[str]) -> tuple[str, ...]:
    """The roles as a tuple; raises InvalidInput for unknown ones or none."""
    given = (roles,) if isinstance(roles, str) else tuple(roles)
    if not given:
        raise InvalidInput("roles is empty; give key, value or both")
    return tuple(choose("role", role, ROLES) for role in given)


class Prober:
    """Measures probes in pictures; what was measured once is not made again.

    Args:
        study: the pictures' prompts, seeds and metric.
        swapping: what probes do.
    """

    def __init__(self, study: Study, swapping: Swapping) -> None:
        self.study = study
        self.swapping = swapping
        self.sweep = study.sweep([text for pair in study.pairs for text in pair])
        self.measured = Measured()

    @property
    def beside(self) -> list[Probe]:
        """The probes of what no layer can carry: the pooled text path, and the nets beside the denoiser that read the prompt."""
        graph = self.study.graph
        return [POOLED] * bool(graph.sites.where(role="pooled")) + [CONTROL] * bool(graph.readers_beside)

    def other(self, pair: int) -> Conditions:
        """What probed layers read in the runs of a pair."""
        return self.sweep.conditions(self.swapping.texts(self.study.pairs[pair])[1])

    def _swap(self, probe: Probe, pair: int) -> ContextSwap:
        """The change of a probe in the runs of a pair.

        For `CONTROL` it is the other way round: in a run of the other prompt all that the denoiser reads is the source's, so that
        the nets beside it alone read the other.
        """
        graph = self.study.graph
        if probe != CONTROL:
            return self.swapping.swap(graph, probe, self.other(pair))
        source = self.sweep.conditions(self.swapping.texts(self.study.pairs[pair])[0])
        every = graph.sites.where(role=(*ROLES, "pooled")).paths
        return ContextSwap(every, source.context, rows=self.swapping.rows, pooled=source.pooled)

    def measure(self, probes: Sequence[Probe], places: Sequence[Place] | None = None) -> Effects:
        """The effects of probes on these pictures, by default all; NaN where a picture has not been probed yet."""
        cases = list(self.study.cases(["base", "goal", *probes], places))
        swaps = {(probe, pair): self._swap(probe, pair) for probe, pair in _distinct(cases)}
        self.study.measure(self.sweep, [Group({case: self._row(case, swaps) for case in cases})], self.swapping, self.measured)
        return self.effects(probes)

    def effects(self, probes: Sequence[Probe]) -> Effects:
        """The effects that were measured so far."""
        return self.measured.effects(self.study, probes, relative=False)

    def follow(self, places: Sequence[Place], steps: Steps, *, cut: bool = False) -> Mapping[Place, tuple[Frame, ...]]:
        """Makes the unchanged runs of these pictures and keeps some frames of each; see `following`."""
        kept: list[tuple[Frame, ...]] = []
        rows = {case: self._row(case, {}) for case in self.study.cases(["base"], places)}
        enter = partial(keeping, self.study.graph, steps, kept, cut=cut)
        if cut:
            with tqdm(total=len(rows), desc=f"following {self.study.name}", unit="image", disable=self.study.quiet) as bar:
                for batch, _ in self.sweep.run(list(rows.values()), enter):
                    bar.update(len(batch))
        else:
            self.study.measure(self.sweep, [Group(rows, enter=enter, always=True)], self.swapping, self.measured)
        return {(case.pair, case.seed): frames for case, frames in zip(rows, kept, strict=True)}

    def _row(self, case: Case, swaps: Mapping[tuple[Probe, int], ContextSwap]) -> Row:
        base, goal = self.swapping.texts(self.study.pairs[case.pair])
        if isinstance(case.probe, str):
            return Row(base if case.probe == "base" else goal, case.seed)
        return Row(goal if case.probe == CONTROL else base, case.seed, (swaps[case.probe, case.pair],))


@contextmanager
def keeping(graph: HookGraph, steps: Steps, kept: list[tuple[Frame, ...]], _rows: Sequence[Row], *, cut: bool = False) -> Iterator[None]:
    """Adds the frames of each row of a batch that is made inside."""
    with following(graph, steps, cut=cut) as found:
        yield
    kept.extend(zip(*found, strict=True))


def drawn(study: Study, seed: int) -> list[Place]:
    """All images of a study in a random order, every prompt's first before any second one.

    What is found on the first images is then found on a random sample of all, however prompts and seeds are listed.
    """
    rng = np.random.default_rng(seed)
    seeds = [[study.seeds[number] for number in rng.permutation(len(study.seeds))] for _ in study.pairs]
    return [(int(pair), seeds[pair][turn]) for turn in range(len(study.seeds)) for pair in rng.permutation(len(study.pairs))]


def split(layers: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Layers in runs of about equal length."""
    return [tuple(each.tolist()) for each in np.array_split(np.array(layers), parts)]


def _distinct(cases: Sequence[Case]) -> set[tuple[Probe, int]]:
    return {(case.probe, case.pair) for case in cases if isinstance(case.probe, Probe)}
