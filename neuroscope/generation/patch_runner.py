"""Patching: the runs in which chosen layers of some images read another prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from tqdm.auto import tqdm

from neuroscope.core.conditions import Conditions, Rows
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.intervention import Definition
from neuroscope.core.results.effects import CONTROL, POOLED, Effects, Patch
from neuroscope.generation.batches import Row
from neuroscope.generation.experiment import Experiment, ImageKey, Pair, RunBatch, RunKey
from neuroscope.generation.measured import Measured
from neuroscope.generation.teacher_forcing import StepInput, Steps, record_steps
from neuroscope.interventions import ContextSwap
from neuroscope.pipeline.graph import HookGraph

ROLES = ("key", "value")
Direction = Literal["necessity", "sufficiency"]
#: Whose latents the other prompt's text reads, where blocks rewrite the text: those of that prompt's own run, or the patched run's.
Trajectory = Literal["own", "shared"]


@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """What a patch does to its layers; `LocoGen` documents the options."""

    roles: str | tuple[str, ...] = ROLES
    direction: Direction = "necessity"
    rows: Rows = "conditional"
    steps: tuple[float, float] = (0.0, 1.0)
    parts: int = 1
    pooled: Literal["own", "other"] = "own"
    definition: Definition = "edge"
    trajectory: Trajectory = "own"

    def texts(self, pair: Pair) -> tuple[str, str]:
        """The source's prompt, and the target's, which patched layers read."""
        return (pair.present, pair.absent) if self.direction == "necessity" else (pair.absent, pair.present)

    @property
    def schedule(self) -> dict[str, tuple[float, float]]:
        """The patched parts of the schedule by name, each from 0.0 to 1.0."""
        if self.parts == 1:
            return {"": self.steps}
        edges = np.linspace(*self.steps, self.parts + 1).tolist()
        return {f"{100 * low:.0f}-{100 * high:.0f} %": (low, high) for low, high in itertools.pairwise(edges)}

    def swap(self, graph: HookGraph, patch: Patch, target: Conditions) -> ContextSwap:
        """The intervention of a patch: its layers read the target prompt's context."""
        inside = graph.sites.where(layer=patch.layers, role=self.roles).paths
        beside = graph.sites.where(role="pooled").paths if patch == POOLED or self.pooled == "other" else ()
        steps = self.steps if patch == POOLED else self.schedule[patch.part]
        definition = "edge" if patch == POOLED else self.definition
        return ContextSwap.reading(target, [*beside, *inside], rows=self.rows, steps=steps, definition=definition)


def check_patch_spec(roles: str | Sequence[str], direction: Direction) -> tuple[str, ...]:
    """The roles as a tuple; raises InvalidInput for unknown roles, for none, and for an unknown direction."""
    choose("direction", direction, get_args(Direction))
    return check_roles(roles)


def check_roles(roles: str | Sequence[str]) -> tuple[str, ...]:
    """The roles as a tuple; raises InvalidInput for unknown roles and for none."""
    given = (roles,) if isinstance(roles, str) else tuple(roles)
    if not given:
        raise InvalidInput("roles is empty; give key, value or both")
    return tuple(choose("role", role, ROLES) for role in given)


class PatchRunner:
    """Measures patches in images. What was measured once is not made again.

    Args:
        experiment: the images' prompts, seeds and metric.
        spec: what patches do.

    Attributes:
        sweep: makes the images.
        measured: what was measured so far.
    """

    def __init__(self, experiment: Experiment, spec: PatchSpec) -> None:
        self.experiment = experiment
        self.spec = spec
        self.sweep = experiment.sweep([text for pair in experiment.pairs for text in pair])
        self.measured = Measured(experiment, self.sweep, spec)

    @property
    def beside(self) -> list[Patch]:
        """See `patches_beside`."""
        return patches_beside(self.experiment.graph)

    def target(self, pair: int) -> Conditions:
        """The target prompt's context, which patched layers read in the runs of a pair."""
        return self.sweep.conditions(self.spec.texts(self.experiment.pairs[pair])[1])

    def measure(self, patches: Sequence[Patch], image_keys: Sequence[ImageKey] | None = None) -> Effects:
        """The effects of patches on these images, by default all; NaN where an image has not been patched yet."""
        runs = list(self.experiment.run_keys(["source", "target", *patches], image_keys))
        patched = {(run.patch, run.pair) for run in runs if isinstance(run.patch, Patch)}
        swaps = {(patch, pair): self._swap(patch, pair) for patch, pair in patched}
        self.measured.run([RunBatch({run: self._row(run, swaps) for run in runs})])
        return self.effects(patches)

    def effects(self, patches: Sequence[Patch]) -> Effects:
        """The effects that were measured so far."""
        return self.measured.effects(patches)

    def record_steps(
        self, image_keys: Sequence[ImageKey], steps: Steps, *, stop_after: bool = False, targets: bool = False
    ) -> Mapping[ImageKey, tuple[StepInput, ...]]:
        """Makes the unchanged runs of these images and keeps some of their steps.

        Args:
            image_keys: the images.
            steps: which steps; see `teacher_forcing.record_steps`.
            stop_after: end each run after the last of them. Such a run makes no image and is not scored.
            targets: measure the images' targets as well, in the same batches.
        """
        kept: list[tuple[StepInput, ...]] = []
        ends = ["source", "target"] if targets else ["source"]
        rows = {run: self._row(run, {}) for run in self.experiment.run_keys(ends, image_keys)}

        def record(graph: HookGraph, batch: Sequence[Row]) -> AbstractContextManager[None]:
            return collect_steps(graph, steps, kept, batch, stop_after=stop_after)

        if stop_after:
            context = partial(record, self.experiment.graph)
            with tqdm(total=len(rows), desc=f"following {self.experiment.name}", unit="image", disable=self.experiment.quiet) as bar:
                for batch, _ in self.sweep.run(list(rows.values()), context):
                    bar.update(len(batch))
        else:
            self.measured.run([RunBatch(rows, context=record, force=True)])
        return {(run.pair, run.seed): each for run, each in zip(rows, kept, strict=True) if run.patch == "source"}

    def _swap(self, patch: Patch, pair: int) -> ContextSwap:
        """The intervention of a patch in the runs of a pair.

        For `CONTROL`, nets beside the denoiser alone are to read the target's prompt. The run is therefore one of the target's prompt
        in which the denoiser reads the source's.
        """
        graph = self.experiment.graph
        if patch != CONTROL:
            return self.spec.swap(graph, patch, self.target(pair))
        source = self.sweep.conditions(self.spec.texts(self.experiment.pairs[pair])[0])
        every = graph.sites.where(role=(*ROLES, "pooled")).paths
        return ContextSwap.reading(source, every, rows=self.spec.rows)

    def _row(self, run: RunKey, swaps: Mapping[tuple[Patch, int], ContextSwap]) -> Row:
        source, target = self.spec.texts(self.experiment.pairs[run.pair])
        if isinstance(run.patch, str):
            return Row(source if run.patch == "source" else target, run.seed)
        takes_text = self.experiment.graph.family.joint and self.spec.trajectory == "own" and run.patch not in (CONTROL, POOLED)
        reads = target if takes_text else ""
        return Row(target if run.patch == CONTROL else source, run.seed, (swaps[run.patch, run.pair],), reads)


def patches_beside(graph: HookGraph) -> list[Patch]:
    """The patches of what no layer carries: the pooled text path, and nets beside the denoiser that read the prompt."""
    return [POOLED] * bool(graph.sites.where(role="pooled")) + [CONTROL] * bool(graph.readers_beside)


@contextmanager
def collect_steps(
    graph: HookGraph, steps: Steps, into: list[tuple[StepInput, ...]], _rows: Sequence[Row], *, stop_after: bool = False
) -> Iterator[None]:
    """A `Sweep.run` block that appends the recorded steps of each row of a batch to a list; see `teacher_forcing.record_steps`."""
    with record_steps(graph, steps, stop_after=stop_after) as found:
        yield
    into.extend(zip(*found, strict=True))


def random_order(experiment: Experiment, seed: int) -> list[ImageKey]:
    """All images of an experiment in a random order, with every prompt's first before any prompt's second.

    The first images are then a random sample of all, whatever the order in which prompts and seeds are listed.
    """
    rng = np.random.default_rng(seed)
    seeds = [[experiment.seeds[number] for number in rng.permutation(len(experiment.seeds))] for _ in experiment.pairs]
    return [(int(pair), seeds[pair][turn]) for turn in range(len(experiment.seeds)) for pair in rng.permutation(len(experiment.pairs))]


def split(layers: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Layers in as many consecutive parts of about equal length."""
    return [tuple(each.tolist()) for each in np.array_split(np.array(layers), parts)]
