"""A study: the runs that a localisation method asks for, made in batches, scored, and kept."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from tqdm.auto import tqdm

from neuroscope.effects import Effects, Probe
from neuroscope.graph import HookGraph
from neuroscope.layer_scores import contact_sheet
from neuroscope.ledger import Ledger, key_of
from neuroscope.metrics import Metric, Share
from neuroscope.provenance import Provenance
from neuroscope.sweep import Enter, Row, Sweep


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
        return replace(self, generation=changed, origin=key_of(self.origin, sorted(map(repr, generation.items()))), keep_images=0)

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

        Runs that were measured earlier, or whose score the ledger holds, are made again only where a picture of them is needed.
        """
        measured = earlier or Measured()
        keys = {case: self._key(case, method) for each in groups for case in each.rows if case not in measured.scores}
        measured.scores.update({case: self.ledger.rows[key]["score"] for case, key in keys.items() if key in self.ledger.rows})
        unscored = {(case.pair, case.seed) for case in keys if case not in measured.scores}
        todo = [(each, [case for case in each.rows if each.always or self._needed(case, measured, unscored)]) for each in groups]
        with tqdm(total=sum(len(cases) for _, cases in todo), desc=f"localizing {self.name}", unit="image", disable=self.quiet) as bar:
            for group, cases in todo:
                rest = iter(cases)
                for rows, made in sweep.run([group.rows[case] for case in cases], group.enter, group.lead):
                    batch = list(itertools.islice(rest, len(rows)))
                    found = self._score(sweep, batch, made, measured.ends)
                    scores = {case: score for case, score in found.items() if case in keys and case not in measured.scores}
                    self.ledger.add({keys[case]: {"score": score} for case, score in scores.items()})
                    measured.scores.update(scores)
                    kept = [number for number, case in enumerate(batch) if self.keeps(case)]
                    pictures = sweep.pictures([made[number] for number in kept]) if kept else []
                    measured.pictures.update(zip([batch[number] for number in kept], pictures, strict=True))
                    bar.update(len(rows))
        return measured

    def warn_of_no_change(self, effects: Effects) -> None:
        """Warns where the goal is not told apart from the base, so that scores mean nothing."""
        if not effects.is_moved():
            warnings.warn(
                f"the full change hardly moves {self.metric!r} ({effects.full_mean():.3f} on average), so no layer can be "
                "found by it; choose another metric, other prompts or more seeds",
                UserWarning,
                stacklevel=2,
            )

    def _key(self, case: Case, method: object) -> str:
        return key_of(self.origin, self.name, repr(method), str(case.probe), *self.pairs[case.pair], case.seed)

    def _needed(self, case: Case, measured: Measured, unscored: Collection[tuple[int, int]]) -> bool:
        place = (case.pair, case.seed)
        if isinstance(self.metric, Share) and isinstance(case.probe, str) and place in unscored:  # shares are measured against both ends
            return case.probe not in measured.ends.get(place, {})
        return case not in measured.scores or (self.keeps(case) and case not in measured.pictures)

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
    """The scores of the cases that were run, the pictures of those that the contact sheet shows, and what shares need."""

    scores: dict[Case, float] = field(default_factory=dict)
    pictures: dict[Case, Image] = field(default_factory=dict)
    ends: Ends = field(default_factory=dict)

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
