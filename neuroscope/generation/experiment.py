"""A study: the runs that a localisation method asks for, made in batches, scored, and kept."""

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
from neuroscope.core.effects import Effects, Probe
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


class Case(NamedTuple):
    """One run: which probe (or "base", the unchanged run, or "goal", the full change), which pair and which seed."""

    probe: Probe | str
    pair: int
    seed: int


#: A picture: the number of its pair and its seed.
Place = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Runs that may share batches, and rows that each of these batches needs in front.

    Attributes:
        rows: what to make for each case.
        lead: rows made again in front of every batch.
        enter: the block in which a batch runs; see `Sweep.run`.
        always: make them even where their scores are known, because the block sees what is looked for.
    """

    rows: Mapping[Case, Row]
    lead: tuple[Row, ...] = ()
    enter: Enter | None = None
    always: bool = False


@dataclass(frozen=True, eq=False)
class _Batch:
    """Cases of one group that are made together."""

    group: Group
    cases: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
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
    shown: tuple[Place, ...] = ()

    def provenance(self, method: object) -> Provenance:
        """Where this study's results come from."""
        return Provenance(self.graph.family.name, self.graph.model, self.name, f"{method!r}, {self.metric!r}")

    def of(self, **generation: Any) -> Study:
        """The same study with other options of the pipeline."""
        changed = {**self.generation, **generation}
        return replace(self, generation=changed, origin=key_of(self.origin, generation), keep_images=0)

    def sweep(self, texts: Iterable[str], **options: Any) -> Sweep:
        """A sweep over these texts with the study's options."""
        space = self.metric.space if isinstance(self.metric, Share) else "image"
        return Sweep(self.graph, list(texts), self.generation, batch_size=self.batch_size, space=space, **options)

    @property
    def places(self) -> list[Place]:
        """All pictures, one pair after the other."""
        return list(itertools.product(range(len(self.pairs)), self.seeds))

    def cases(self, probes: Sequence[Probe | str], places: Sequence[Place] | None = None) -> Iterator[Case]:
        """The cases of these probes on these pictures, by default all, one picture after the other."""
        return (Case(probe, *place) for place in (self.places if places is None else places) for probe in probes)

    def keeps(self, case: Case) -> bool:
        """Whether the contact sheet shows this run."""
        return (case.pair, case.seed) in self.sheet_places

    @property
    def sheet_places(self) -> tuple[Place, ...]:
        """The images of the contact sheet, one a row."""
        count = min(self.keep_images, len(self.pairs))
        return self.shown[:count] or tuple((pair, self.seeds[0]) for pair in range(count))

    def measure(self, sweep: Sweep, groups: Sequence[Group], method: object, earlier: Measured | None = None) -> Measured:
        """Makes and scores the runs of these groups; within a group, a pair's "base" and "goal" come before its probes.

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
        ends = [(case, batch) for batch in batches for case in batch.cases if isinstance(case.probe, str)]
        measured.resting.update({case: batch for case, batch in ends if case not in made})
        with tqdm(total=sum(len(batch.cases) for batch in todo), desc=f"localizing {self.name}", unit="image", disable=self.quiet) as bar:
            for batch in todo:
                for each in (*self._ends_of(batch, measured), batch):
                    self._make(sweep, each, measured, keys)
                bar.update(len(batch.cases))
        return measured

    def _cut(self, sweep: Sweep, group: Group, measured: Measured) -> Iterator[_Batch]:
        """The batches of a group's cases that were not measured before.

        Where a ledger is kept, what shares are measured against has batches of its own: it alone may be made again.
        """
        cases = [case for case in group.rows if group.always or case not in measured.scores or self._is_wanted(case, measured)]
        size = max(1, sweep.batch_size - len(group.lead))
        apart = isinstance(self.metric, Share) and not group.lead and self.ledger.is_kept
        ends = [case for case in cases if isinstance(case.probe, str)] if apart else []
        for part in (ends, [case for case in cases if case not in ends]):
            yield from (_Batch(group, tuple(part[first : first + size])) for first in range(0, len(part), size))

    def _wanted(self, batch: _Batch, measured: Measured) -> _Batch:
        """What of a batch is to be made: of one that holds what shares are measured against, all or nothing."""
        cases = tuple(case for case in batch.cases if self._is_needed(case, batch, measured))
        ends = isinstance(self.metric, Share) and any(isinstance(case.probe, str) for case in batch.cases)
        return batch if cases and ends else _Batch(batch.group, cases)

    def _is_wanted(self, case: Case, measured: Measured) -> bool:
        """Whether a case's picture is still to be made for the contact sheet."""
        return self.keeps(case) and case not in measured.pictures

    def _is_needed(self, case: Case, batch: _Batch, measured: Measured) -> bool:
        return batch.group.always or case not in measured.scores or self._is_wanted(case, measured)

    def _ends_of(self, batch: _Batch, measured: Measured) -> list[_Batch]:
        """The batches whose scores were known, but which shares of this one are measured against; each is made once."""
        if not isinstance(self.metric, Share):
            return []
        ends = [case._replace(probe=end) for case in batch.cases for end in ("base", "goal") if case.probe not in ("base", end)]
        missing = [end for end in dict.fromkeys(ends) if end.probe not in measured.ends.get((end.pair, end.seed), {})]
        return list(dict.fromkeys(measured.resting[end] for end in missing if end in measured.resting))

    def _make(self, sweep: Sweep, batch: _Batch, measured: Measured, keys: Mapping[Case, str]) -> None:
        """Makes a batch, and keeps the scores that are new and the pictures of the contact sheet."""
        group, rest = batch.group, iter(batch.cases)
        for rows, made in sweep.run([group.rows[case] for case in batch.cases], group.enter, group.lead):
            cases = list(itertools.islice(rest, len(rows)))
            found = self._score(sweep, cases, made, measured.ends)
            scores = {case: score for case, score in found.items() if case in keys and case not in measured.scores}
            self.ledger.add({keys[case]: {self.metric.name: score} for case, score in scores.items()})
            measured.scores.update(scores)
            kept = [number for number, case in enumerate(cases) if self.keeps(case)]
            pictures = sweep.pictures([made[number] for number in kept]) if kept else []
            measured.pictures.update(zip([cases[number] for number in kept], pictures, strict=True))

    def warn_of_no_change(self, effects: Effects) -> None:
        """Warns where the goal is not told apart from the base, so that scores mean nothing."""
        if not effects.is_moved():
            warnings.warn(
                f"the full change hardly moves {self.metric!r} ({effects.full_mean():.3f} on average), so no layer can be "
                "found by it; choose another metric, other prompts or more seeds",
                UserWarning,
                stacklevel=2,
            )

    def _key(self, case: Case, method: str) -> str:
        return key_of(self.origin, self.name, method, str(case.probe), *self.pairs[case.pair], case.seed)

    def _score(self, sweep: Sweep, batch: Sequence[Case], made: Sequence[Any], ends: Ends) -> dict[Case, float]:
        if not isinstance(self.metric, Share):
            scores = self.metric(sweep.pictures(made), [self.pairs[case.pair].present for case in batch])
            return dict(zip(batch, map(float, scores), strict=True))
        found = {}
        for case, each in zip(batch, made, strict=True):
            known = ends.setdefault((case.pair, case.seed), {})
            if isinstance(case.probe, str):
                known[case.probe] = each
            found[case] = 0.0 if case.probe == "base" else self.metric(each, known["base"], known["goal"])
        return found


#: By pair and seed the "base" and the "goal" that were made.
Ends = dict[tuple[int, int], dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        scores: of the cases that were run.
        pictures: those that the contact sheet shows.
        ends: what shares are measured against.
        resting: by "base" and "goal" whose scores the ledger held, the batches that were not made for that reason.
    """

    scores: dict[Case, float] = field(default_factory=dict)
    pictures: dict[Case, Image] = field(default_factory=dict)
    ends: Ends = field(default_factory=dict)
    resting: dict[Case, _Batch] = field(default_factory=dict)

    def effects(self, study: Study, probes: Sequence[Probe], *, relative: bool) -> Effects:
        """How far each probe moved the metric from the base towards the goal; the direction comes from these two."""
        base, goal = (self._table(study, [end])[0] for end in ("base", "goal"))
        change = float(np.nanmean(goal - base)) if not np.isnan(goal - base).all() else math.nan
        sign = -1.0 if change < 0 else 1.0
        values = torch.from_numpy(sign * (self._table(study, probes) - base))
        prompts = tuple(pair.present for pair in study.pairs)
        return Effects(tuple(probes), prompts, study.seeds, values, torch.from_numpy(sign * (goal - base)), relative)

    def sheet(self, study: Study, probes: Sequence[Probe]) -> dict[str, Any]:
        """The contact sheet's fields of `LayerScores`: one row a prompt, one column a run."""
        columns: tuple[Probe | str, ...] = ("base", *probes, "goal")
        every = ([self.pictures.get(Case(column, *place)) for column in columns] for place in study.sheet_places)
        rows = [[picture for picture in row if picture] for row in itertools.takewhile(all, every)]
        if not rows:
            return {}
        prompts = tuple(study.pairs[pair].present for pair, _ in study.sheet_places[: len(rows)])
        return {"columns": tuple(map(str, columns)), "sheet": contact_sheet(rows), "sheet_prompts": prompts}

    def _table(self, study: Study, probes: Sequence[Probe | str]) -> np.ndarray:
        """[probe, prompt, seed]."""
        shape = (len(study.pairs), len(study.seeds), len(probes))
        return (
            np.array([self.scores.get(case, math.nan) for case in study.cases(probes)], dtype=np.float64).reshape(shape).transpose(2, 0, 1)
        )
