"""The search for the layer which all windows of one layer would name, for a fraction of their rows.

A screen says which few layers look strong. They are then swapped alone in real pictures, and all others together: where
all others together do less than one layer, none of them does more. Where they do not, they are split; where layers are
close, more pictures are made, or more are screened by the beginnings of their runs: see `ControlVariates`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from neuroscope.confidence import LIKELY, Confidence, chance_of_fewer, chance_of_reverse
from neuroscope.cost import Meter
from neuroscope.effects import Effects, Probe
from neuroscope.localization.control_variates import ControlVariates
from neuroscope.localization.glancing import Glances, by_picture
from neuroscope.localization.probing import Prober, split, spread
from neuroscope.localization.study import Place

SURE = 0.95
_FEWEST, _PICTURES = 3, 4  # of the final, and for an answer that is sure
_FINALISTS = 3
_CLOSE = 0.5  # of the strongest layer's share: what else goes to the final
_SCREEN_PART = 0.4  # of the budget
_NOTHING = 0.1  # of the full change: less is no effect
_COMMON = 0.3  # an effect on a smaller share of pictures may be missed
_OUT = 0.001  # a rival that is ahead with a smaller chance gets no more pictures
_CLOSE_CALL = 0.1  # the chance that another layer is ahead from which the screen is asked again
_UNEVEN = 2.0  # how much stronger than the screen says one layer of a group may be
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
        self._whole = budget == 1
        self._layers = prober.study.graph.sites.layers
        self._order = spread(prober.study)
        self._glances = Glances(prober, meter, self._order)
        self._count = 0
        self.singles: list[Probe] = []
        self.groups: list[Probe] = []
        self._screen(budget)
        self._allowed = budget * self._sweep_rows
        self._screen_rows = self.rows - self._glances.pictures * self._run_rows

    @property
    def rows(self) -> float:
        """The rows that were run so far."""
        return self._glances.rows

    @property
    def _run_rows(self) -> float:
        return self._glances.run_rows

    @property
    def _spent(self) -> float:
        """The rows of the budget that are gone; pictures that a stopped search had made before count as well, so that it ends alike."""
        return self._screen_rows + len(self._prober.measured.scores) * self._run_rows

    def run(self) -> Confidence:
        """Goes on until it is sure of the best layer or the budget is spent."""
        finalists = self._finalists()
        self._count = min(self._first(2 + len(finalists) + len(self._prober.beside)), len(self._order))
        ends = self._prober.measure([], self._places)
        if ends.full_interval()[0] <= 0:
            unclear = bool(np.nan_to_num(ends.full.numpy()).any())
            return self._confidence(self._sure() if self._whole and unclear and self._sweep() else self._absence)
        self.singles = [Probe((layer,)) for layer in finalists]
        rest = tuple(each for each in self._layers if each not in finalists)
        self.groups = [Probe(rest)] if rest else []
        self._prober.measure([*self.singles, *self.groups, *self._prober.beside], self._places)
        while (sure := self._sure()) < SURE and self._go_on():
            pass
        return self._confidence(sure)

    def effects(self) -> Effects:
        """Each layer's effects, as they were measured or as the screen foretells them.

        The effect of layers that were measured together is shared out among them by the screen.
        """
        known = self._prober.effects([*self.singles, *self.groups, *self._prober.beside])
        every = {Probe((layer,)): torch.full(known.full.shape, torch.nan, dtype=torch.float64) for layer in self._layers}
        for probe, values in zip(known.probes, known.values, strict=True):
            parts = self._glances.parts(probe.layers) if probe.layers else [1.0]
            every |= {Probe((layer,)): values * part for layer, part in zip(probe.layers, parts, strict=False)}
            every |= {} if probe.layers else {probe: values}
        for probe, expected in zip(self.singles, self._variates.completed(), strict=True):
            every[probe] = torch.from_numpy(by_picture(expected, self._order, known))
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

    def _first(self, runs: int) -> int:
        """On how many pictures to begin the final, with so many runs each beside the screen's."""
        if self._whole:
            return _PICTURES
        allowed = (self._allowed - self._spent) / self._run_rows
        return max(
            number for number in range(2, _FEWEST + 1) if number == 2 or number * runs + max(0, number - self._glances.pictures) <= allowed
        )

    def _affordable(self, runs: int) -> int:
        """How many pictures more the budget allows, with so many runs each."""
        return int((self._allowed - self._spent) / (runs * self._run_rows))

    def _confidence(self, probability: float) -> Confidence:
        alone = tuple(sorted(each.layers[0] for each in self.singles))
        return Confidence(probability, alone, self._count, len(self._order), self._screened)

    def _screen(self, budget: float) -> None:
        """Looks at as many pictures as fit the screen's part of the budget, at least one."""
        for seen in range(1, min(_PICTURES, len(self._order)) + 1):
            self._glances.at_whole()
            if self.rows * (1 + 1 / seen) > _SCREEN_PART * budget * self._sweep_rows:
                break

    def _finalists(self) -> list[int]:
        """The layers that look strong over all screened pictures, and each picture's own strongest."""
        shares = self._glances.shares
        means = shares.mean(axis=0)
        strong = [number for number in np.argsort(-means, kind="stable")[:_FINALISTS] if means[number] >= _CLOSE * means.max()]
        own = [int(each.argmax()) for each in shares]
        return [self._layers[number] for number in dict.fromkeys([*strong, *own])]

    def _largest(self, probe: Probe) -> float:
        """The part of a group's effect that one of its layers may have, going by the screen."""
        return min(1.0, _UNEVEN * max(self._glances.parts(probe.layers)))

    def _sure(self) -> float:
        """How sure it is of the strongest single layer."""
        effects = self._prober.effects([*self.singles, *self.groups])
        if np.nanmax(np.abs(effects.values.numpy())) < _NOTHING * effects.full_mean():
            return self._absence
        rare = chance_of_fewer(self._count, len(self._order))
        bound = 1 - max(rare, sum(self._reverse(rival) for rival in self._rivals))
        screened = 1 - max(rare, sum(self._reverse(rival, self._largest(rival)) for rival in self._rivals))
        return max(0.0, min(LIKELY, bound) if self._screened else bound, min(LIKELY, screened))

    @property
    def _variates(self) -> ControlVariates:
        """What single layers do in the pictures that were made, beside what the screen says of these and of others."""
        return self._glances.beside(self._prober.effects(self.singles))

    @property
    def _screened(self) -> int:
        """How many pictures layers are compared on, where the screen adds some."""
        return self._glances.pictures if self._glances.pictures > self._count and self._variates.helps else 0

    @property
    def _best(self) -> Probe:
        means = np.nanmean(self._variates.completed(), axis=1)
        return min(self.singles, key=lambda each: (-means[self.singles.index(each)], each.layers))

    @property
    def _rivals(self) -> list[Probe]:
        best = self._best
        return [each for each in (*self.singles, *self.groups) if each != best]

    def _reverse(self, rival: Probe, part: float = 1.0) -> float:
        """The chance that a rival (or a part of a group's effect) is stronger than the best single layer on all pictures."""
        if rival in self.singles:
            return self._variates.chance_of_reverse(self.singles.index(self._best), self.singles.index(rival), len(self._order))
        best, other = self._prober.effects([self._best, rival]).values.numpy()
        differences = (best - part * other).ravel()
        return chance_of_reverse(differences[~np.isnan(differences)], len(self._order))

    def _go_on(self) -> bool:
        """Splits the strongest group that may hold a stronger layer, or sees more pictures; False where nothing is left to do."""
        allowed = (1 - SURE) / max(1, len(self._rivals))
        wide = {each: self._reverse(each, 1.0 if self._whole else self._largest(each)) for each in self.groups}
        open_groups = [each for each, chance in wide.items() if chance > allowed]
        if not open_groups and self._count == len(self._order):
            return False
        if self._whole and (self._is_flat or self._prompts_disagree):
            return self._sweep()
        if not open_groups:
            return self._see_more()
        widest = max(open_groups, key=lambda each: wide[each])
        if self._whole or wide[widest] > self._contest:
            return self._split(widest) or self._see_more()
        return self._see_more() or self._split(widest)

    @property
    def _contest(self) -> float:
        """The chance that another single layer is the best."""
        return sum(self._reverse(each) for each in self._rivals if each in self.singles)

    def _see_more(self) -> bool:
        """More pictures of the layers that may still be the best: made, or only screened, whichever promises more."""
        alive = [self._best, *(each for each in self._rivals if self._count < _PICTURES or self._reverse(each) >= _OUT)]
        more = min(len(self._order) - self._count, 1 if self._count < _PICTURES else self._count, self._affordable(2 + len(alive)))
        if not self._whole and self._contest > _CLOSE_CALL and self._variates.helps and self._screen_more(alive):
            return True
        if more < 1:
            return self._whole and self._sweep()
        self._count += more
        self._prober.measure(alive, self._places)
        return True

    def _screen_more(self, alive: Sequence[Probe]) -> bool:
        """Looks at the beginnings of further runs, where that promises more than pictures for the same rows; False where it does not."""
        layers = [layer for each in self.singles for layer in each.layers]
        left, seen, of = self._allowed - self._spent, self._glances.pictures, len(self._order)
        beginning, picture = self._glances.rows_of_beginning(len(layers)), (2 + len(alive)) * self._run_rows
        more = min(of - seen, int(left / beginning))
        made, made_beside = (min(of, self._count + int(rows / picture)) for rows in (left, left - more * beginning))
        error = self._variates.error
        if more < 1 or error(made_beside, seen + more, of) >= error(made, seen, of):
            return False
        before = self.rows
        self._glances.at_beginnings(more, layers)
        self._screen_rows += self.rows - before
        return True

    def _split(self, group: Probe) -> bool:
        ranked = np.array(group.layers)[np.argsort(-self._glances.parts(group.layers), kind="stable")]
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
        self.singles, self.groups, self._count = [Probe((layer,)) for layer in self._layers], [], len(self._order)
        self._prober.measure([*self.singles, *self._prober.beside], self._places)
        return True

    @property
    def _is_flat(self) -> bool:
        return float(self._glances.shares.mean(axis=0).max()) < _NOTHING

    @property
    def _prompts_disagree(self) -> bool:
        values = self._prober.effects(self.singles).of_layers_by_prompt([each.layers[0] for each in self.singles])
        named = Counter(values[values.max(axis=1) > 0].argmax(axis=1).tolist())
        return bool(named) and max(named.values()) < _AGREEING * named.total()
