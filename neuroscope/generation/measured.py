"""`Measured`: makes an experiment's runs in batches, scores them, and keeps what it found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image

from neuroscope.core.results.effects import Effects, Patch
from neuroscope.core.results.layer_scores import contact_sheet
from neuroscope.generation.batches import Sweep, how_many_fit
from neuroscope.generation.executors import Local, Part, Task, Work, make
from neuroscope.generation.experiment import Experiment, ImageKey, RunBatch, RunKey
from neuroscope.generation.keys import key_of, method_key
from neuroscope.generation.model_content import state
from neuroscope.metrics.shares import Share

#: The two unpatched runs of an image, against which shares are measured.
_ENDS = ("source", "target")


@dataclass(frozen=True, eq=False)
class _Batch:
    """Runs of one `RunBatch` that are made together."""

    group: RunBatch
    runs: tuple[RunKey, ...]

    @property
    def ends(self) -> list[RunKey]:
        """Those that are sources and targets."""
        return [run for run in self.runs if isinstance(run.patch, str)]


class Measured:
    """Makes and scores runs, and keeps their scores and images. A run that was measured is not made again.

    Args:
        experiment: the images' prompts, seeds and metric.
        sweep: makes the runs.
        method: what is measured; scores in the experiment's ledger are found again by it.

    Attributes:
        scores: the metric of each run that was measured; of a `Share`, 0 for a source.
        images: the images that the contact sheet shows.
    """

    def __init__(self, experiment: Experiment, sweep: Sweep, method: object) -> None:
        self.scores: dict[RunKey, float] = {}
        self.images: dict[RunKey, Image] = {}
        self._experiment = experiment
        self._sweep = sweep
        self._method = method_key(method, state)
        self._is_share = isinstance(experiment.metric, Share)
        metrics = () if isinstance(experiment.metric, Share) else (experiment.metric,)
        self._work = Work(sweep, metrics, f"{experiment.progress} {experiment.name}", experiment.quiet)
        #: Of each image the source and the target that were made, which shares are measured against.
        self._ends: dict[ImageKey, dict[str, Any]] = {}
        #: Of each image the runs whose source or target is not made yet, with what was made of them: tasks may come in any order.
        self._waiting: dict[ImageKey, dict[RunKey, Any]] = {}
        #: Runs that were made in groups which did not fit the memory.
        self._halved: set[RunKey] = set()
        #: The batches of sources and targets that were not made, as the ledger holds their scores.
        self._skipped: dict[RunKey, _Batch] = {}

    def run(self, groups: Sequence[RunBatch]) -> None:
        """Makes and scores the runs of these groups; within a group, an image's source and target come before its patches.

        A run whose score is known is made again only where the contact sheet needs its image. Batches are formed before the ledger is
        asked and stay as they are, so that an experiment that was stopped and goes on has the same rounding as one that was not.
        """
        batches = [batch for group in groups for batch in self._batches(group)]
        keys = {run: self._key(run) for batch in batches for run in batch.runs}
        self._recall(keys)
        workers = Local() if any(group.force for group in groups) else self._experiment.workers
        own = [batch for number, batch in enumerate(batches) if workers.takes(number)]
        todo = [needed for batch in own if (needed := self._needed(batch)).runs]
        made = {run for batch in todo for run in batch.runs}
        self._skipped.update({run: batch for batch in batches for run in batch.ends if run not in made})
        todo = list(dict.fromkeys(each for batch in todo for each in (*self._skipped_ends(batch), batch)))
        self._plan(keys, todo)

        def failed(rows: Sequence[tuple[int, int]], error: Exception) -> None:
            self._experiment.ledger.fail([self._key(todo[number].runs[row]) for number, row in rows], error)

        with closing(make(workers, self._work, [self._task(batch) for batch in todo], failed=failed)) as made_of:
            for number, part in made_of:
                self._keep(todo[number].runs[part.numbers.start : part.numbers.stop], part, keys)
        workers.finish()

    def effects(self, patches: Sequence[Patch], *, relative: bool = False) -> Effects:
        """How far each patch moved the metric from the source towards the target.

        The sign is that of the mean total effect, so that a patch which takes the metric towards the target is positive whether the
        metric falls or rises.

        Args:
            patches: what was patched; NaN stands for an image in which it was not.
            relative: whether scores are shares of the total effect.
        """
        source, target = (self._table([end])[0] for end in _ENDS)
        total = target - source
        change = float(np.nanmean(total)) if not np.isnan(total).all() else math.nan
        sign = -1.0 if change < 0 else 1.0
        values = torch.from_numpy(sign * (self._table(patches) - source))
        prompts = tuple(pair.present for pair in self._experiment.pairs)
        return Effects(tuple(patches), prompts, self._experiment.seeds, values, torch.from_numpy(sign * total), relative)

    def sheet(self, patches: Sequence[Patch]) -> dict[str, Any]:
        """The contact sheet's fields of `LayerScores`, with a row a prompt and a column a run; empty where an image is missing."""
        experiment = self._experiment
        columns: tuple[Patch | str, ...] = ("source", *patches, "target")
        every = ([self.images.get(RunKey(column, *image_key)) for column in columns] for image_key in experiment.sheet_keys)
        rows = [[image for image in row if image] for row in itertools.takewhile(all, every)]
        if not rows:
            return {}
        prompts = tuple(experiment.pairs[pair].present for pair, _ in experiment.sheet_keys[: len(rows)])
        return {"columns": tuple(map(str, columns)), "sheet": contact_sheet(rows), "sheet_prompts": prompts}

    def _batches(self, group: RunBatch) -> Iterator[_Batch]:
        """The batches of a group's runs that were not measured before.

        With a ledger, sources and targets have batches of their own where shares are measured against them: these alone may be made
        again.
        """
        runs = [run for run in group.rows if group.force or run not in self.scores or self._needs_image(run)]
        size = self._sweep.batch_size - len(group.shared_rows)
        apart = self._is_share and not group.shared_rows and self._experiment.ledger.is_kept
        ends = [run for run in runs if isinstance(run.patch, str)] if apart else []
        for left in (ends, [run for run in runs if run not in ends]):
            first = 0
            while first < len(left):
                count = how_many_fit([group.rows[run] for run in left[first:]], size)
                yield _Batch(group, tuple(left[first : first + count]))
                first += count

    def _plan(self, keys: Mapping[RunKey, str], todo: Sequence[_Batch]) -> None:
        """Notes in the ledger which runs are needed."""
        experiment = self._experiment
        if experiment.ledger.keeps_plans:
            images = {key: f"{run.patch}, {experiment.pairs[run.pair].present!r}, seed {run.seed}" for run, key in keys.items()}
            wanted = [keys.get(run) or self._key(run) for batch in todo for run in batch.runs if run not in self.scores]
            experiment.ledger.plan(experiment.run, experiment.title, images, wanted)

    def _recall(self, keys: Mapping[RunKey, str]) -> None:
        """Takes scores from the ledger."""
        name = self._experiment.metric.name
        for run, key in keys.items():
            if run not in self.scores and (known := self._experiment.ledger.known(key, [name])) is not None:
                self.scores[run] = known[name]

    def _needed(self, batch: _Batch) -> _Batch:
        """What of a batch is to be made. A batch with ends that shares are measured against is made whole or not at all."""
        runs = tuple(run for run in batch.runs if batch.group.force or run not in self.scores or self._needs_image(run))
        return batch if runs and self._is_share and batch.ends else _Batch(batch.group, runs)

    def _needs_image(self, run: RunKey) -> bool:
        """Whether a run's image is still to be made for the contact sheet."""
        return self._is_shown(run) and run not in self.images

    def _is_shown(self, run: RunKey) -> bool:
        """Whether the contact sheet shows a run. It is not made in shards, nor again where scores were merged from shards."""
        experiment = self._experiment
        is_alone = not experiment.workers.is_partial and not experiment.ledger.is_merged
        return is_alone and (run.pair, run.seed) in experiment.sheet_keys

    def _skipped_ends(self, batch: _Batch) -> list[_Batch]:
        """The skipped batches that hold the ends which shares of this batch need."""
        if not self._is_share:
            return []
        ends = [run._replace(patch=end) for run in batch.runs for end in _ENDS if run.patch not in ("source", end)]
        missing = [end for end in dict.fromkeys(ends) if end.patch not in self._ends.get((end.pair, end.seed), {})]
        return list(dict.fromkeys(self._skipped[end] for end in missing if end in self._skipped))

    def _task(self, batch: _Batch) -> Task:
        """What makes a batch."""
        group, pairs = batch.group, self._experiment.pairs
        rows, prompts = ((group.rows[run] for run in batch.runs), (pairs[run.pair].present for run in batch.runs))
        shown = (number for number, run in enumerate(batch.runs) if self._is_shown(run))
        return Task(tuple(rows), tuple(prompts), group.shared_rows, group.context, tuple(shown))

    def _keep(self, runs: Sequence[RunKey], part: Part, keys: Mapping[RunKey, str]) -> None:
        """Keeps what was made of some runs: the scores that are new, and the images of the contact sheet."""
        name, every = self._experiment.metric.name, dict(zip(part.numbers, runs, strict=True))
        found = self._shares(runs, part.made) if self._is_share else dict(zip(runs, part.scores[name], strict=True))
        scores = {run: score for run, score in found.items() if run in keys and run not in self.scores}
        self._halved |= set(runs) if part.is_halved else set()
        for halved in (False, True):
            new = {keys[run]: {name: score} for run, score in scores.items() if self._is_halved(run) == halved}
            self._experiment.ledger.add(new, halved=halved)
        self.scores.update(scores)
        self.images.update({every[number]: image for number, image in part.images.items()})

    def _is_halved(self, run: RunKey) -> bool:
        """Whether a run, or an end that its share is measured against, was made in a group that did not fit the memory."""
        ends = [run._replace(patch=end) for end in _ENDS] if self._is_share else []
        return not self._halved.isdisjoint([run, *ends])

    def _shares(self, runs: Sequence[RunKey], made: Sequence[Any]) -> dict[RunKey, float]:
        """The shares of these runs, and of earlier ones that waited for a source or a target among them."""
        for run, each in zip(runs, made, strict=True):
            image = run.pair, run.seed
            if isinstance(run.patch, str):
                self._ends.setdefault(image, {})[run.patch] = each
            self._waiting.setdefault(image, {})[run] = each
        found: dict[RunKey, float] = {}
        for image in dict.fromkeys((run.pair, run.seed) for run in runs):
            shares = {run: share for run, each in self._waiting[image].items() if (share := self._share(run, each)) is not None}
            self._waiting[image] = {run: each for run, each in self._waiting[image].items() if run not in shares}
            found |= shares
        return found

    def _share(self, run: RunKey, made: Any) -> float | None:
        """How far a run moved; None before its source and its target are made."""
        ends, metric = self._ends.get((run.pair, run.seed), {}), self._experiment.metric
        if run.patch == "source":
            return 0.0
        return metric(made, ends["source"], ends["target"]) if isinstance(metric, Share) and len(ends) == len(_ENDS) else None

    def _key(self, run: RunKey) -> str:
        experiment = self._experiment
        return key_of(experiment.origin, experiment.name, self._method, str(run.patch), *experiment.pairs[run.pair], run.seed)

    def _table(self, patches: Sequence[Patch | str]) -> Float[np.ndarray, "patch prompt seed"]:
        """Scores of runs; NaN where one was not measured."""
        shape = (len(self._experiment.pairs), len(self._experiment.seeds), len(patches))
        scores = [self.scores.get(run, math.nan) for run in self._experiment.run_keys(patches)]
        return np.array(scores, dtype=np.float64).reshape(shape).transpose(2, 0, 1)
