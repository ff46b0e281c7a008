"""Glances: what single predictions say of each layer, on whole runs that are made anyway and on the beginnings of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from neuroscope.cost import Meter
from neuroscope.effects import Effects
from neuroscope.forcing import Forcing, Frame
from neuroscope.localization.control_variates import ControlVariates
from neuroscope.localization.probing import Prober
from neuroscope.localization.study import Place
from neuroscope.localization.teacher_forced import forced_shares

_EARLY = 0.35  # where in the schedule a single prediction tells most of the picture
_LATE = 0.75  # where layers are seen that act late
_BOTH = 2  # on how many pictures both are looked at


class Glances:
    """Each layer's shares of single predictions (see `TeacherForced`), of more and more pictures in an order that is given.

    Args:
        prober: makes the runs.
        meter: counts their rows.
        order: the pictures.

    Attributes:
        run_rows: the rows of a run, once one was made.
    """

    def __init__(self, prober: Prober, meter: Meter, order: Sequence[Place]) -> None:
        self._prober = prober
        self._forcing = Forcing(prober.study.graph)
        self._meter = meter
        self._order = order
        self._layers = np.array(prober.study.graph.sites.layers)
        self._over_frames: list[np.ndarray] = []
        self._early: list[np.ndarray] = []
        self._beginning = 1.0
        self.run_rows = 0.0

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
        return np.stack(self._over_frames)

    def at_whole(self) -> None:
        """Makes the next picture's unchanged run and looks at all layers, once or twice."""
        place, before = self._order[self.pictures], self.rows
        followed = self._prober.follow([place], (_EARLY, _LATE) if self.pictures < _BOTH else (_EARLY,))
        self.run_rows, early = self.rows - before, followed[place][0]
        self._beginning = (early.step + 1) / early.steps
        (shares,) = self._look(followed, self._layers.tolist())
        self._over_frames.append(shares.mean(axis=0))
        self._early.append(shares[0])

    def at_beginnings(self, pictures: int, layers: Sequence[int]) -> None:
        """Begins the unchanged runs of so many further pictures and looks at some layers."""
        places = self._order[self.pictures : self.pictures + pictures]
        for (shares,) in self._look(self._prober.follow(places, (_EARLY,), cut=True), layers):
            row = np.full(len(self._layers), np.nan)
            row[np.searchsorted(self._layers, layers)] = shares
            self._early.append(row)

    def rows_of_beginning(self, layers: int) -> float:
        """The rows that a beginning takes at most: its own, the frame's again, the full change's, and each layer's."""
        return self._beginning * self.run_rows + 2 + layers

    def parts(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """The part that each of these layers has in what they do together."""
        shares = self.shares.mean(axis=0)[np.searchsorted(self._layers, layers)].clip(min=0) + 1e-3
        return shares / shares.sum()

    def beside(self, effects: Effects) -> ControlVariates:
        """The effects of single layers in the pictures that were made, beside what is foreseen of these and of others."""
        values = self.in_order(effects)
        numbers = np.searchsorted(self._layers, [each.layers[0] for each in effects.probes])
        foreseen = np.full(values.shape, np.nan)
        foreseen[:, : self.pictures] = effects.full_mean() * np.stack(self._early, axis=1)[numbers]
        return ControlVariates(values, foreseen)

    def in_order(self, effects: Effects) -> Float[np.ndarray, "probe picture"]:
        """The effects in the order of the pictures."""
        pairs, seeds = zip(*self._order, strict=True)
        return effects.values.numpy()[:, pairs, [effects.seeds.index(seed) for seed in seeds]]

    def _look(self, followed: Mapping[Place, Sequence[Frame]], layers: Sequence[int]) -> list[np.ndarray]:
        """For each picture [frame, layer]."""
        prober = self._prober
        look = partial(forced_shares, prober.swapping.roles, self._forcing, layers=layers)
        return [
            np.nan_to_num([look(frame, prober.other(pair), prober.swapping.texts(prober.study.pairs[pair])) for frame in frames])
            for (pair, _), frames in followed.items()
        ]


def by_picture(values: Float[np.ndarray, "picture"], order: Sequence[Place], effects: Effects) -> Float[np.ndarray, "prompt seed"]:
    """The inverse of `Glances.in_order` for one probe."""
    table = np.full((len(effects.prompts), len(effects.seeds)), np.nan)
    for value, (pair, seed) in zip(values, order, strict=True):
        table[pair, effects.seeds.index(seed)] = value
    return table
