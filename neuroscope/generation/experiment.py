"""An experiment: the runs that a localisation method asks for, made in batches, scored, and kept."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from tqdm.auto import tqdm

from neuroscope.core.artifacts import Provenance
from neuroscope.core.effects import Effects, Patch
from neuroscope.core.layer_scores import contact_sheet
from neuroscope.generation.batches import Enter, Row, Sweep
from neuroscope.generation.keys import key_of, method_key
from neuroscope.generation.ledger import Ledger
from neuroscope.generation.model_content import state
from neuroscope.metrics.metric import Metric
from neuroscope.metrics.shares import Share
from neuroscope.pipeline.graph import HookGraph


class Pair(NamedTuple):
    """A prompt with the concept and its partner without it."""

    present: str
    absent: str


class RunKey(NamedTuple):
    """One run: which patch (or "source", the unchanged run, or "target", the total effect), which pair and which seed."""

    patch: Patch | str
    pair: int
    seed: int


#: An image: the number of its pair and its seed.
ImageKey = tuple[int, int]


@dataclass(frozen=True)
class RunBatch:
    """Runs that may share batches, and rows that each of these batches needs in front.

    Attributes:
        rows: what to make for each case.
        lead: rows made again in front of every batch.
        enter: the block in which a batch runs; see `Sweep.run`.
        always: make them even where their scores are known, because the block sees what is looked for.
    """

    rows: Mapping[RunKey, Row]
    lead: tuple[Row, ...] = ()
    enter: Enter | None = None
    always: bool = False


@dataclass(frozen=True, eq=False)
class _Batch:
    """Cases of one group that are made together."""

    group: RunBatch
    cases: tuple[RunKey, ...]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a localisation method works with; see `localize` for the fields' meaning.

    Attributes:
        name: the concept's.
        origin: a hash of all that scores depend on beside the method and the case.
        shown: the images that the contact sheet shows, if these are others than the first prompts' with the first seed.
    """

    graph: HookGraph
    name: str
    pairs: tuple[Pair, ...]
    metric: Metric | Share
    seeds: tuple[int, ...]
    generation: Mapping[str, Any]
    batch_size: int | None
    ledger: Ledger
    origin: str
    keep_images: int
    quiet: bool
    shown: tuple[ImageKey, ...] = ()

    def provenance(self, method: object) -> Provenance:
        """Where this experiment's results come from."""
        return Provenance(self.graph.family.name, self.graph.model, self.name, f"{method!r}, {self.metric!r}")

    def of(self, **generation: Any) -> Experiment:
        """The same experiment with other options of the pipeline."""
        changed = {**self.generation, **generation}
        return replace(self, generation=changed, origin=key_of(self.origin, generation), keep_images=0)

    def sweep(self, texts: Iterable[str], **options: Any) -> Sweep:
        """A sweep over these texts with the experiment's options."""
        space = self.metric.space if isinstance(self.metric, Share) else "image"
        return Sweep(self.graph, list(texts), self.generation, batch_size=self.batch_size, space=space, **options)

    @property
    def image_keys(self) -> list[ImageKey]:
        """All images, one pair after the other."""
        return list(itertools.product(range(len(self.pairs)), self.seeds))

    def cases(self, patches: Sequence[Patch | str], image_keys: Sequence[ImageKey] | None = None) -> Iterator[RunKey]:
        """The cases of these patches on these images, by default all, one image after the other."""
        return (RunKey(patch, *image_key) for image_key in (self.image_keys if image_keys is None else image_keys) for patch in patches)

    def keeps(self, case: RunKey) -> bool:
        """Whether the contact sheet shows this run."""
        return (case.pair, case.seed) in self.sheet_keys

    @property
    def sheet_keys(self) -> tuple[ImageKey, ...]:
        """The images of the contact sheet, one a row."""
        count = min(self.keep_images, len(self.pairs))
        return self.shown[:count] or tuple((pair, self.seeds[0]) for pair in range(count))

    def measure(self, sweep: Sweep, groups: Sequence[RunBatch], method: object, earlier: Measured | None = None) -> Measured:
        """Makes and scores the runs of these groups; within a group, a pair's "source" and "target" come before its patches.

        Runs that were measured earlier, or whose score the ledger holds, are made again only where an image of them is needed. Batches
        are cut before the ledger is asked, and keep their own: so a run that goes on after a batch rounds as one that was never stopped.
        """
        measured = earlier or Measured()
        named = method_key(method, state)
        batches = [batch for each in groups for batch in self._cut(sweep, each, measured)]
        keys = {case: self._key(case, named) for batch in batches for case in batch.cases}
        for case, key in keys.items():
            if case not in measured.scores and (known := self.ledger.known(key, [self.metric.name])) is not None:
                measured.scores[case] = known[self.metric.name]
        todo = [wanted for batch in batches if (wanted := self._wanted(batch, measured)).cases]
        made = {case for batch in todo for case in batch.cases}
        ends = [(case, batch) for batch in batches for case in batch.cases if isinstance(case.patch, str)]
        measured.resting.update({case: batch for case, batch in ends if case not in made})
        with tqdm(total=sum(len(batch.cases) for batch in todo), desc=f"localizing {self.name}", unit="image", disable=self.quiet) as bar:
            for batch in todo:
                for each in (*self._ends_of(batch, measured), batch):
                    self._make(sweep, each, measured, keys)
                bar.update(len(batch.cases))
        return measured

    def _cut(self, sweep: Sweep, group: RunBatch, measured: Measured) -> Iterator[_Batch]:
        """The batches of a group's cases that were not measured before.

        Where a ledger is kept, what shares are measured against has batches of its own: it alone may be made again.
        """
        cases = [case for case in group.rows if group.always or case not in measured.scores or self._is_wanted(case, measured)]
        size = max(1, sweep.batch_size - len(group.lead))
        apart = isinstance(self.metric, Share) and not group.lead and self.ledger.is_kept
        ends = [case for case in cases if isinstance(case.patch, str)] if apart else []
        for part in (ends, [case for case in cases if case not in ends]):
            yield from (_Batch(group, tuple(part[first : first + size])) for first in range(0, len(part), size))

    def _wanted(self, batch: _Batch, measured: Measured) -> _Batch:
        """What of a batch is to be made: of one that holds what shares are measured against, all or nothing."""
        cases = tuple(case for case in batch.cases if self._is_needed(case, batch, measured))
        ends = isinstance(self.metric, Share) and any(isinstance(case.patch, str) for case in batch.cases)
        return batch if cases and ends else _Batch(batch.group, cases)

    def _is_wanted(self, case: RunKey, measured: Measured) -> bool:
        """Whether a case's image is still to be made for the contact sheet."""
        return self.keeps(case) and case not in measured.images

    def _is_needed(self, case: RunKey, batch: _Batch, measured: Measured) -> bool:
        return batch.group.always or case not in measured.scores or self._is_wanted(case, measured)

    def _ends_of(self, batch: _Batch, measured: Measured) -> list[_Batch]:
        """The batches whose scores were known, but which shares of this one are measured against; each is made once."""
        if not isinstance(self.metric, Share):
            return []
        ends = [case._replace(patch=end) for case in batch.cases for end in ("source", "target") if case.patch not in ("source", end)]
        missing = [end for end in dict.fromkeys(ends) if end.patch not in measured.ends.get((end.pair, end.seed), {})]
        return list(dict.fromkeys(measured.resting[end] for end in missing if end in measured.resting))

    def _make(self, sweep: Sweep, batch: _Batch, measured: Measured, keys: Mapping[RunKey, str]) -> None:
        """Makes a batch, and keeps the scores that are new and the images of the contact sheet."""
        group, rest = batch.group, iter(batch.cases)
        for rows, made in sweep.run([group.rows[case] for case in batch.cases], group.enter, group.lead):
            cases = list(itertools.islice(rest, len(rows)))
            found = self._score(sweep, cases, made, measured.ends)
            scores = {case: score for case, score in found.items() if case in keys and case not in measured.scores}
            self.ledger.add({keys[case]: {self.metric.name: score} for case, score in scores.items()})
            measured.scores.update(scores)
            kept = [number for number, case in enumerate(cases) if self.keeps(case)]
            images = sweep.images([made[number] for number in kept]) if kept else []
            measured.images.update(zip([cases[number] for number in kept], images, strict=True))

    def warn_of_no_change(self, effects: Effects) -> None:
        """Warns where the target is not told apart from the source, so that scores mean nothing."""
        if not effects.is_moved():
            warnings.warn(
                f"the total effect hardly moves {self.metric!r} ({effects.total_mean():.3f} on average), so no layer can be "
                "found by it; choose another metric, other prompts or more seeds",
                UserWarning,
                stacklevel=2,
            )

    def _key(self, case: RunKey, method: str) -> str:
        return key_of(self.origin, self.name, method, str(case.patch), *self.pairs[case.pair], case.seed)

    def _score(self, sweep: Sweep, batch: Sequence[RunKey], made: Sequence[Any], ends: Ends) -> dict[RunKey, float]:
        if not isinstance(self.metric, Share):
            scores = self.metric(sweep.images(made), [self.pairs[case.pair].present for case in batch])
            return dict(zip(batch, map(float, scores), strict=True))
        found = {}
        for case, each in zip(batch, made, strict=True):
            known = ends.setdefault((case.pair, case.seed), {})
            if isinstance(case.patch, str):
                known[case.patch] = each
            found[case] = 0.0 if case.patch == "source" else self.metric(each, known["source"], known["target"])
        return found


#: By pair and seed the "source" and the "target" that were made.
Ends = dict[tuple[int, int], dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        scores: of the cases that were run.
        images: those that the contact sheet shows.
        ends: what shares are measured against.
        resting: by "source" and "target" whose scores the ledger held, the batches that were not made for that reason.
    """

    scores: dict[RunKey, float] = field(default_factory=dict)
    images: dict[RunKey, Image] = field(default_factory=dict)
    ends: Ends = field(default_factory=dict)
    resting: dict[RunKey, _Batch] = field(default_factory=dict)

    def effects(self, experiment: Experiment, patches: Sequence[Patch], *, relative: bool) -> Effects:
        """How far each patch moved the metric from the source towards the target; the direction comes from these two."""
        source, target = (self._table(experiment, [end])[0] for end in ("source", "target"))
        change = float(np.nanmean(target - source)) if not np.isnan(target - source).all() else math.nan
        sign = -1.0 if change < 0 else 1.0
        values = torch.from_numpy(sign * (self._table(experiment, patches) - source))
        prompts = tuple(pair.present for pair in experiment.pairs)
        return Effects(tuple(patches), prompts, experiment.seeds, values, torch.from_numpy(sign * (target - source)), relative)

    def sheet(self, experiment: Experiment, patches: Sequence[Patch]) -> dict[str, Any]:
        """The contact sheet's fields of `LayerScores`: one row a prompt, one column a run."""
        columns: tuple[Patch | str, ...] = ("source", *patches, "target")
        every = ([self.images.get(RunKey(column, *image_key)) for column in columns] for image_key in experiment.sheet_keys)
        rows = [[image for image in row if image] for row in itertools.takewhile(all, every)]
        if not rows:
            return {}
        prompts = tuple(experiment.pairs[pair].present for pair, _ in experiment.sheet_keys[: len(rows)])
        return {"columns": tuple(map(str, columns)), "sheet": contact_sheet(rows), "sheet_prompts": prompts}

    def _table(self, experiment: Experiment, patches: Sequence[Patch | str]) -> np.ndarray:
        """[patch, prompt, seed]."""
        shape = (len(experiment.pairs), len(experiment.seeds), len(patches))
        return (
            np.array([self.scores.get(case, math.nan) for case in experiment.cases(patches)], dtype=np.float64)
            .reshape(shape)
            .transpose(2, 0, 1)
        )
