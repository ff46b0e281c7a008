"""Glances: what single predictions say of each layer, on whole runs that are made anyway and on the beginnings of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from neuroscope.core.effects import Effects, Probe
from neuroscope.generation.experiment import Place
from neuroscope.generation.metering import Meter
from neuroscope.generation.patch_runner import Prober
from neuroscope.generation.teacher_forcing import Forcing, Frame
from neuroscope.localization.screening.teacher_forced import forced_shares
from neuroscope.localization.search.control_variates import ControlVariates

_EARLY = 0.35  # where in the schedule a single prediction tells most of the picture
_LATE = 0.75  # where layers are seen that act late
_BOTH = 2  # on how many pictures both are looked at
_STRONGEST, _CLOSE = 3, 0.5  # how many layers stand out, and with what share of the strongest one's
_UNEVEN = 2.0  # how much stronger than single predictions say one layer of a group may be


class Glances:
    """Each layer's shares of single predictions (see `TeacherForced`), of more and more pictures in an order that is given.

    Args:
        prober: makes the runs.
        meter: counts their rows.
        order: the pictures.

    Attributes:
        order: the pictures; see `reorder`.
        run_rows: the rows of a run, once one was made.
        own_rows: the rows of all that is no run of a whole picture: predictions, and beginnings of runs.
    """

    def __init__(self, prober: Prober, meter: Meter, order: Sequence[Place]) -> None:
        self._prober = prober
        self._forcing = Forcing(prober.study.graph)
        self._meter = meter
        self._layers = np.array(prober.study.graph.sites.layers)
        self._over_frames: dict[Place, np.ndarray] = {}
        self._early: dict[Place, np.ndarray] = {}
        self._followed: Mapping[Place, Sequence[Frame]] = {}
        self._beginning = 1.0
        self.order = list(order)
        self.run_rows = 0.0
        self.own_rows = 0.0

    @property
    def rows(self) -> float:
        """All rows that were run so far, by whomever."""
        return self._meter.cost.rows + self._forcing.rows

    @property
    def pictures(self) -> int:
        """How many pictures were looked at."""
        return len(self._early)

    @property
    def shares(self) -> Float[np.ndarray, "picture layer"]:
        """The shares of the pictures whose whole runs were looked at, means over frames."""
        return np.stack(list(self._over_frames.values()))

    def begin(self) -> None:
        """Makes the next picture's unchanged run, so that the rows of a run are known; `at_whole` looks at it."""
        (place, *_), before, scored = self._unseen, self.rows, len(self._prober.measured.scores)
        self._followed = self._prober.follow([place], (_EARLY, _LATE) if len(self._over_frames) < _BOTH else (_EARLY,))
        self.run_rows, early = self.rows - before, self._followed[place][0]
        self.own_rows += self.run_rows if len(self._prober.measured.scores) == scored else 0  # it was made before
        self._beginning = (early.step + 1) / early.steps

    def at_whole(self, *, late: bool = True) -> None:
        """Makes the next picture's unchanged run, unless it has begun, and looks at all layers, once or (late) twice."""
        if not self._followed:
            self.begin()
        ((place, frames),) = self._followed.items()
        (shares,) = self._look({place: frames if late else frames[:1]}, self._layers.tolist())
        self._over_frames[place] = shares.mean(axis=0)
        self._early[place] = shares[0]
        self._followed = {}

    def at_beginnings(self, pictures: int, layers: Sequence[int]) -> None:
        """Begins the unchanged runs of so many further pictures and looks at some layers."""
        places, before = self._unseen[:pictures], self.rows
        followed = self._prober.follow(places, (_EARLY,), cut=True)
        self.own_rows += self.rows - before
        for place, (shares,) in zip(places, self._look(followed, layers), strict=True):
            row = np.full(len(self._layers), np.nan)
            row[np.searchsorted(self._layers, layers)] = shares
            self._early[place] = row

    def reorder(self, order: Sequence[Place]) -> None:
        """Goes on in another order, and forgets what was seen of pictures that are not in it."""
        self.order = list(order)
        for seen in (self._over_frames, self._early):
            for place in set(seen) - set(order):
                del seen[place]

    def rows_of_look(self, frames: int = 1) -> float:
        """The rows that looking at so many frames of a run takes at most: the frame's again, the full change's, and each layer's."""
        return frames * (2.0 + len(self._layers))

    def rows_of_beginning(self, layers: int) -> float:
        """The rows that a beginning takes at most: its own, the frame's again, the full change's, and each layer's."""
        return self._beginning * self.run_rows + 2 + layers

    def parts(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """The part that each of these layers has in what they do together."""
        shares = self.shares.mean(axis=0)[np.searchsorted(self._layers, layers)].clip(min=0) + 1e-3
        return shares / shares.sum()

    def strongest(self) -> list[int]:
        """The layers that look strong over all pictures, and each picture's own strongest."""
        means = self.shares.mean(axis=0)
        strong = [number for number in np.argsort(-means, kind="stable")[:_STRONGEST] if means[number] >= _CLOSE * means.max()]
        own = [int(each.argmax()) for each in self.shares if each.any()]
        return [int(self._layers[number]) for number in dict.fromkeys([*strong, *own])]

    def largest(self, group: Probe) -> float:
        """The part of a group's effect that one of its layers may have."""
        return min(1.0, _UNEVEN * max(self.parts(group.layers)))

    def beside(self, effects: Effects) -> ControlVariates:
        """The effects of single layers in the pictures that were made, beside what is foreseen of these and of others."""
        values = self.in_order(effects)
        numbers = np.searchsorted(self._layers, [each.layers[0] for each in effects.probes])
        foreseen = np.full(values.shape, np.nan)
        changes = self._ordered(effects, effects.full[None].numpy())
        full = changes[~np.isnan(changes)].sum() / max(1, int((~np.isnan(changes)).sum()))
        for place, shares in self._early.items():
            foreseen[:, self.order.index(place)] = full * shares[numbers]
        return ControlVariates(values, foreseen)

    def in_order(self, effects: Effects) -> Float[np.ndarray, "probe picture"]:
        """The effects in the order of the pictures."""
        return self._ordered(effects, effects.values.numpy())

    def _ordered(self, effects: Effects, values: Float[np.ndarray, "probe prompt seed"]) -> Float[np.ndarray, "probe picture"]:
        pairs, seeds = zip(*self.order, strict=True)
        return values[:, pairs, [effects.seeds.index(seed) for seed in seeds]]

    @property
    def _unseen(self) -> list[Place]:
        return [place for place in self.order if place not in self._early]

    def _look(self, followed: Mapping[Place, Sequence[Frame]], layers: Sequence[int]) -> list[np.ndarray]:
        """For each picture [frame, layer]."""
        prober, before = self._prober, self.rows
        look = partial(forced_shares, prober.swapping.roles, self._forcing, layers=layers)
        found = [
            np.nan_to_num([look(frame, prober.other(pair), prober.swapping.texts(prober.study.pairs[pair])) for frame in frames])
            for (pair, _), frames in followed.items()
        ]
        self.own_rows += self.rows - before
        return found


def by_picture(values: Float[np.ndarray, "picture"], order: Sequence[Place], effects: Effects) -> Float[np.ndarray, "prompt seed"]:
    """The inverse of `Glances.in_order` for one probe."""
    table = np.full((len(effects.prompts), len(effects.seeds)), np.nan)
    for value, (pair, seed) in zip(values, order, strict=True):
        table[pair, effects.seeds.index(seed)] = value
    return table
