"""The search for the layer which all windows of one layer would name, for a fraction of their rows.

A screen says which few layers look strong. They are then swapped alone in real pictures, and all others together: where
all others together do less than one layer, none of them does more. Where they do not, they are split; where layers are
close, more pictures are made.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from neuroscope.confidence import Confidence, chance_of_fewer, chance_of_reverse
from neuroscope.cost import Meter
from neuroscope.effects import Effects, Probe
from neuroscope.forcing import Forcing
from neuroscope.localization.probing import Prober, split, spread
from neuroscope.localization.screening import view
from neuroscope.localization.study import Place
from neuroscope.localization.teacher_forced import forced_shares

SURE = 0.95
_FRAMES = 2
_PICTURES = 4
_FINALISTS = 3
_CLOSE = 0.5  # of the strongest layer's share: what else goes to the final
_SCREEN_PART = 0.4  # of the budget
_NOTHING = 0.1  # of the full change: less is no effect
_COMMON = 0.3  # an effect on a smaller share of pictures may be missed
_OUT = 0.001  # a rival that is ahead with a smaller chance gets no more pictures
_UNEVEN = 2.0  # how much stronger than the screen says one layer of a group may be
_LIKELY = 0.9  # no surer than this where the screen alone speaks against a layer of a group
_AGREEING = 0.75


class AutoSearch:
    """One search.

    Args:
        prober: makes the pictures.
        meter: counts their rows.
        budget: the share of all windows' rows that may be spent.

    Attributes:
        singles: the layers that were measured alone.
        groups: those that were measured together.
    """

    def __init__(self, prober: Prober, meter: Meter, budget: float) -> None:
        self._prober = prober
        self._forcing = Forcing(prober.study.graph)
        self._meter = meter
        self._whole = budget == 1
        self._layers = np.array(prober.study.graph.sites.layers)
        self._order = spread(prober.study)
        self._count = 0
        self.singles: list[Probe] = []
        self.groups: list[Probe] = []
        self._run_rows = 0.0
        self._shares = self._look(budget)
        self._allowed = budget * self._sweep_rows
        self._screen_rows = self.rows - len(self._shares) * self._run_rows

    @property
    def rows(self) -> float:
        """The rows that were run so far."""
        return self._meter.cost.rows + self._forcing.rows

    @property
    def _spent(self) -> float:
        """The rows of the budget that are gone; pictures that a stopped search had made before count as well, so that it ends alike."""
        return self._screen_rows + len(self._prober.measured.scores) * self._run_rows

    def run(self) -> Confidence:
        """Goes on until it is sure of the best layer or the budget is spent."""
        finalists = self._finalists()
        runs = 3 + len(finalists) + len(self._prober.beside)
        self._count = min(max(2, min(_PICTURES, self._affordable(runs))), len(self._order))
        ends = self._prober.measure([], self._places)
        if ends.full_interval()[0] <= 0:
            unclear = bool(np.nan_to_num(ends.full.numpy()).any())
            return self._confidence(self._sure() if self._whole and unclear and self._sweep() else self._absence)
        self.singles = [Probe((layer,)) for layer in finalists]
        rest = tuple(each for each in self._layers.tolist() if each not in finalists)
        self.groups = [Probe(rest)] if rest else []
        self._prober.measure([*self.singles, *self.groups, *self._prober.beside], self._places)
        while (sure := self._sure()) < SURE and self._go_on():
            pass
        return self._confidence(sure)

    def effects(self) -> Effects:
        """Each layer's effects; the effect of layers that were measured together is shared out among them by the screen."""
        known = self._prober.effects([*self.singles, *self.groups, *self._prober.beside])
        every = {Probe((layer,)): torch.full(known.full.shape, torch.nan, dtype=torch.float64) for layer in self._layers.tolist()}
        for probe, values in zip(known.probes, known.values, strict=True):
            parts = self._parts(probe) if probe.layers else [1.0]
            every |= {Probe((layer,)): values * part for layer, part in zip(probe.layers, parts, strict=False)}
            every |= {} if probe.layers else {probe: values}
        return Effects(tuple(every), known.prompts, known.seeds, torch.stack(list(every.values())), known.full)

    @property
    def _places(self) -> list[Place]:
        """The pictures of the final."""
        return self._order[: self._count]

    @property
    def _sweep_rows(self) -> float:
        """The rows of all windows."""
        return (len(self._layers) + 2 + len(self._prober.beside)) * len(self._order) * self._run_rows

    @property
    def _absence(self) -> float:
        """How sure it is that what was seen in no picture is in no more than a few."""
        return 1 - (1 - _COMMON) ** self._count

    def _affordable(self, runs: int) -> int:
        """How many pictures more the budget allows, with so many runs each."""
        return int((self._allowed - self._spent) / (runs * self._run_rows))

    def _confidence(self, probability: float) -> Confidence:
        return Confidence(probability, tuple(sorted(each.layers[0] for each in self.singles)), self._count, len(self._order))

    def _look(self, budget: float) -> Float[np.ndarray, "picture layer"]:
        """The screen's shares on as many pictures as fit its part of the budget, at least one."""
        look = partial(forced_shares, self._prober.swapping.roles)
        seen: list[np.ndarray] = []
        for place in self._order[:_PICTURES]:
            before = self.rows
            frames = self._prober.follow([place], _FRAMES)
            self._run_rows = self.rows - before
            values = view(self._prober, self._forcing, look, frames).values.numpy()
            here = values[:, place[0], self._prober.study.seeds.index(place[1])].reshape(-1, len(self._layers))
            seen.append(np.nan_to_num(here).mean(axis=0))
            if self.rows * (1 + 1 / len(seen)) > _SCREEN_PART * budget * self._sweep_rows:
                break
        return np.stack(seen)

    def _finalists(self) -> list[int]:
        """The layers that look strong over all screened pictures, and each picture's own strongest."""
        means = self._shares.mean(axis=0)
        strong = [number for number in np.argsort(-means, kind="stable")[:_FINALISTS] if means[number] >= _CLOSE * means.max()]
        own = [int(each.argmax()) for each in self._shares]
        return self._layers[list(dict.fromkeys([*strong, *own]))].tolist()

    def _parts(self, probe: Probe) -> Float[np.ndarray, "layer"]:
        """The part of a group's effect that each of its layers has by the screen."""
        shares = self._shares.mean(axis=0)[np.searchsorted(self._layers, probe.layers)].clip(min=0) + 1e-3
        return shares / shares.sum()

    def _sure(self) -> float:
        """How sure it is of the strongest single layer."""
        effects = self._prober.effects([*self.singles, *self.groups])
        if np.nanmax(np.abs(effects.values.numpy())) < _NOTHING * effects.full_mean():
            return self._absence
        rare = chance_of_fewer(self._count, len(self._order))
        bound = 1 - max(rare, sum(self._reverse(rival) for rival in self._rivals))
        screened = 1 - max(rare, sum(self._reverse(rival, min(1.0, _UNEVEN * max(self._parts(rival)))) for rival in self._rivals))
        return max(0.0, bound, min(_LIKELY, screened))

    @property
    def _best(self) -> Probe:
        means = self._prober.effects(self.singles).means()
        return min(self.singles, key=lambda each: (-means[self.singles.index(each)], each.layers))

    @property
    def _rivals(self) -> list[Probe]:
        return [each for each in (*self.singles, *self.groups) if each != self._best]

    def _reverse(self, rival: Probe, part: float = 1.0) -> float:
        """The chance that a rival (or a part of a group's effect) is stronger than the best single layer on all pictures."""
        best, other = self._prober.effects([self._best, rival]).values.numpy()
        differences = (best - part * other).ravel()
        return chance_of_reverse(differences[~np.isnan(differences)], len(self._order))

    def _go_on(self) -> bool:
        """Splits the strongest group that may hold a stronger layer, or makes more pictures; False where nothing is left to do."""
        allowed = (1 - SURE) / max(1, len(self._rivals))
        wide = {each: self._reverse(each) for each in self.groups}
        open_groups = [each for each, chance in wide.items() if chance > allowed]
        rest = len(self._order) - self._count
        if not open_groups and not rest:
            return False
        if self._whole and (self._is_flat or self._prompts_disagree):
            return self._sweep()
        if open_groups:
            return self._split(max(open_groups, key=lambda each: wide[each]))
        alive = [self._best, *(each for each in self._rivals if self._reverse(each) >= _OUT)]
        more = min(rest, self._count, self._affordable(2 + len(alive)))
        if more < 1:
            return self._whole and self._sweep()
        self._count += more
        self._prober.measure(alive, self._places)
        return True

    def _split(self, group: Probe) -> bool:
        ranked = np.array(group.layers)[np.argsort(-self._parts(group), kind="stable")]
        halves = [Probe(tuple(sorted(half))) for half in split(ranked.tolist(), 2)]
        places = [place for place in self._places if not np.isnan(self._value(group, place))]
        if self._affordable(len(halves)) < len(places):
            return self._whole and self._sweep()
        self._replace(group, halves)
        self._prober.measure(halves, places)
        return True

    def _replace(self, group: Probe, halves: list[Probe]) -> None:
        self.groups.remove(group)
        self.groups += [half for half in halves if len(half.layers) > 1]
        self.singles += [half for half in halves if len(half.layers) == 1]

    def _value(self, probe: Probe, place: Place) -> float:
        pair, seed = place
        return float(self._prober.effects([probe]).values[0, pair, self._prober.study.seeds.index(seed)])

    def _sweep(self) -> bool:
        """Falls back on all windows of all pictures."""
        self.singles, self.groups, self._count = [Probe((layer,)) for layer in self._layers.tolist()], [], len(self._order)
        self._prober.measure([*self.singles, *self._prober.beside], self._places)
        return True

    @property
    def _is_flat(self) -> bool:
        return float(self._shares.mean(axis=0).max()) < _NOTHING

    @property
    def _prompts_disagree(self) -> bool:
        values = self._prober.effects(self.singles).of_layers_by_prompt([each.layers[0] for each in self.singles])
        named = Counter(values[values.max(axis=1) > 0].argmax(axis=1).tolist())
        return bool(named) and max(named.values()) < _AGREEING * named.total()
