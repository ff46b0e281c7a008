"""Probing: the runs in which chosen layers of some images read another prompt."""

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
from neuroscope.core.effects import CONTROL, POOLED, Effects, Patch
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.generation.batches import Row
from neuroscope.generation.experiment import Experiment, ImageKey, Measured, Pair, RunBatch, RunKey
from neuroscope.generation.teacher_forcing import StepInput, Steps, following
from neuroscope.interventions import ContextSwap
from neuroscope.pipeline.graph import HookGraph

ROLES = ("key", "value")
Direction = Literal["necessity", "sufficiency"]


@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """What a patch does to its layers; see `LocoGen` for the fields."""

    roles: str | tuple[str, ...] = ROLES
    direction: Direction = "necessity"
    rows: Rows = "conditional"
    steps: tuple[float, float] = (0.0, 1.0)
    parts: int = 1
    pooled: Literal["own", "other"] = "own"

    def texts(self, pair: Pair) -> tuple[str, str]:
        """The prompt of the unchanged run, and the one that patched layers read."""
        return (pair.present, pair.absent) if self.direction == "necessity" else (pair.absent, pair.present)

    @property
    def schedule(self) -> dict[str, tuple[float, float]]:
        """The patched parts of the schedule by name."""
        if self.parts == 1:
            return {"": self.steps}
        edges = np.linspace(*self.steps, self.parts + 1).tolist()
        return {f"{100 * low:.0f}-{100 * high:.0f} %": (low, high) for low, high in itertools.pairwise(edges)}

    def swap(self, graph: HookGraph, patch: Patch, other: Conditions) -> ContextSwap:
        """The change of a patch, to what the other prompt says."""
        inside = graph.sites.where(layer=patch.layers, role=self.roles).paths
        beside = graph.sites.where(role="pooled").paths if patch == POOLED or self.pooled == "other" else ()
        steps = self.steps if patch == POOLED else self.schedule[patch.part]
        return ContextSwap([*beside, *inside], other.context, rows=self.rows, steps=steps, pooled=other.pooled)


def check_patch_spec(roles: str | Sequence[str], direction: Direction) -> tuple[str, ...]:
    """As `check_roles`; raises InvalidInput for an unknown direction as well."""
    choose("direction", direction, get_args(Direction))
    return check_roles(roles)


def check_roles(roles: str | Sequence[str]) -> tuple[str, ...]:
    """The roles as a tuple; raises InvalidInput for unknown ones or none."""
    given = (roles,) if isinstance(roles, str) else tuple(roles)
    if not given:
        raise InvalidInput("roles is empty; give key, value or both")
    return tuple(choose("role", role, ROLES) for role in given)


class PatchRunner:
    """Measures patches in images; what was measured once is not made again.

    Args:
        experiment: the images' prompts, seeds and metric.
        spec: what patches do.
    """

    def __init__(self, experiment: Experiment, spec: PatchSpec) -> None:
        self.experiment = experiment
        self.spec = spec
        self.sweep = experiment.sweep([text for pair in experiment.pairs for text in pair])
        self.measured = Measured()

    @property
    def beside(self) -> list[Patch]:
        """The patches of what no layer can carry: the pooled text path, and the nets beside the denoiser that read the prompt."""
        graph = self.experiment.graph
        return [POOLED] * bool(graph.sites.where(role="pooled")) + [CONTROL] * bool(graph.readers_beside)

    def other(self, pair: int) -> Conditions:
        """What patched layers read in the runs of a pair."""
        return self.sweep.conditions(self.spec.texts(self.experiment.pairs[pair])[1])

    def _swap(self, patch: Patch, pair: int) -> ContextSwap:
        """The change of a patch in the runs of a pair.

        For `CONTROL` it is the other way round: in a run of the other prompt all that the denoiser reads is the source's, so that
        the nets beside it alone read the other.
        """
        graph = self.experiment.graph
        if patch != CONTROL:
            return self.spec.swap(graph, patch, self.other(pair))
        source = self.sweep.conditions(self.spec.texts(self.experiment.pairs[pair])[0])
        every = graph.sites.where(role=(*ROLES, "pooled")).paths
        return ContextSwap(every, source.context, rows=self.spec.rows, pooled=source.pooled)

    def measure(self, patches: Sequence[Patch], image_keys: Sequence[ImageKey] | None = None) -> Effects:
        """The effects of patches on these images, by default all; NaN where an image has not been patched yet."""
        cases = list(self.experiment.cases(["source", "target", *patches], image_keys))
        swaps = {(patch, pair): self._swap(patch, pair) for patch, pair in _distinct(cases)}
        self.experiment.measure(self.sweep, [RunBatch({case: self._row(case, swaps) for case in cases})], self.spec, self.measured)
        return self.effects(patches)

    def effects(self, patches: Sequence[Patch]) -> Effects:
        """The effects that were measured so far."""
        return self.measured.effects(self.experiment, patches, relative=False)

    def follow(self, image_keys: Sequence[ImageKey], steps: Steps, *, cut: bool = False) -> Mapping[ImageKey, tuple[StepInput, ...]]:
        """Makes the unchanged runs of these images and keeps some frames of each; see `following`."""
        kept: list[tuple[StepInput, ...]] = []
        rows = {case: self._row(case, {}) for case in self.experiment.cases(["source"], image_keys)}
        enter = partial(keeping, self.experiment.graph, steps, kept, cut=cut)
        if cut:
            with tqdm(total=len(rows), desc=f"following {self.experiment.name}", unit="image", disable=self.experiment.quiet) as bar:
                for batch, _ in self.sweep.run(list(rows.values()), enter):
                    bar.update(len(batch))
        else:
            self.experiment.measure(self.sweep, [RunBatch(rows, enter=enter, always=True)], self.spec, self.measured)
        return {(case.pair, case.seed): frames for case, frames in zip(rows, kept, strict=True)}

    def _row(self, case: RunKey, swaps: Mapping[tuple[Patch, int], ContextSwap]) -> Row:
        source, target = self.spec.texts(self.experiment.pairs[case.pair])
        if isinstance(case.patch, str):
            return Row(source if case.patch == "source" else target, case.seed)
        return Row(target if case.patch == CONTROL else source, case.seed, (swaps[case.patch, case.pair],))


@contextmanager
def keeping(
    graph: HookGraph, steps: Steps, kept: list[tuple[StepInput, ...]], _rows: Sequence[Row], *, cut: bool = False
) -> Iterator[None]:
    """Adds the frames of each row of a batch that is made inside."""
    with following(graph, steps, cut=cut) as found:
        yield
    kept.extend(zip(*found, strict=True))


def drawn(experiment: Experiment, seed: int) -> list[ImageKey]:
    """All images of an experiment in a random order, every prompt's first before any second one.

    What is found on the first images is then found on a random sample of all, however prompts and seeds are listed.
    """
    rng = np.random.default_rng(seed)
    seeds = [[experiment.seeds[number] for number in rng.permutation(len(experiment.seeds))] for _ in experiment.pairs]
    return [(int(pair), seeds[pair][turn]) for turn in range(len(experiment.seeds)) for pair in rng.permutation(len(experiment.pairs))]


def split(layers: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Layers in runs of about equal length."""
    return [tuple(each.tolist()) for each in np.array_split(np.array(layers), parts)]


def _distinct(cases: Sequence[RunKey]) -> set[tuple[Patch, int]]:
    return {(case.patch, case.pair) for case in cases if isinstance(case.patch, Patch)}
