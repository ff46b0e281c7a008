"""ScreenedEffects: what single predictions say of each layer, on whole runs that are made anyway and on the beginnings of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from neuroscope.core.effects import Effects, Patch
from neuroscope.generation.experiment import ImageKey
from neuroscope.generation.metering import Meter
from neuroscope.generation.patch_runner import PatchRunner
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.localization.screening.teacher_forced import forced_shares
from neuroscope.localization.search.control_variates import ControlVariates

_EARLY = 0.35  # where in the schedule a single prediction tells most of the image
_LATE = 0.75  # where layers are seen that act late
_BOTH = 2  # on how many images both are looked at
_STRONGEST, _CLOSE = 3, 0.5  # how many layers stand out, and with what share of the strongest one's
_UNEVEN = 2.0  # how much stronger than single predictions say one layer of a group may be


class ScreenedEffects:
    """Each layer's shares of single predictions (see `TeacherForced`), of more and more images in an order that is given.

    Args:
        runner: makes the runs.
        meter: counts their rows.
        order: the images.

    Attributes:
        order: the images; see `reorder`.
        run_nfe: the rows of a run, once one was made.
        own_nfe: the rows of all that is no run of a whole image: predictions, and beginnings of runs.
    """

    def __init__(self, runner: PatchRunner, meter: Meter, order: Sequence[ImageKey]) -> None:
        self._runner = runner
        self._forcing = TeacherForcing(runner.experiment.graph)
        self._meter = meter
        self._layers = np.array(runner.experiment.graph.sites.layers)
        self._over_frames: dict[ImageKey, np.ndarray] = {}
        self._early: dict[ImageKey, np.ndarray] = {}
        self._followed: Mapping[ImageKey, Sequence[StepInput]] = {}
        self._beginning = 1.0
        self.order = list(order)
        self.run_nfe = 0.0
        self.own_nfe = 0.0

    @property
    def nfe(self) -> float:
        """All rows that were run so far, by whomever."""
        return self._meter.cost.nfe + self._forcing.nfe

    @property
    def images(self) -> int:
        """How many images were looked at."""
        return len(self._early)

    @property
    def shares(self) -> Float[np.ndarray, "image layer"]:
        """The shares of the images whose whole runs were looked at, means over frames."""
        return np.stack(list(self._over_frames.values()))

    def begin(self) -> None:
        """Makes the next image's unchanged run, so that the rows of a run are known; `screen_full_run` looks at it."""
        (image_key, *_), before, scored = self._unseen, self.nfe, len(self._runner.measured.scores)
        self._followed = self._runner.record_steps([image_key], (_EARLY, _LATE) if len(self._over_frames) < _BOTH else (_EARLY,))
        self.run_nfe, early = self.nfe - before, self._followed[image_key][0]
        self.own_nfe += self.run_nfe if len(self._runner.measured.scores) == scored else 0  # it was made before
        self._beginning = (early.step + 1) / early.steps

    def screen_full_run(self, *, late: bool = True) -> None:
        """Makes the next image's unchanged run, unless it has begun, and looks at all layers, once or (late) twice."""
        if not self._followed:
            self.begin()
        ((image_key, frames),) = self._followed.items()
        (shares,) = self._look({image_key: frames if late else frames[:1]}, self._layers.tolist())
        self._over_frames[image_key] = shares.mean(axis=0)
        self._early[image_key] = shares[0]
        self._followed = {}

    def screen_truncated_runs(self, images: int, layers: Sequence[int]) -> None:
        """Begins the unchanged runs of so many further images and looks at some layers."""
        image_keys, before = self._unseen[:images], self.nfe
        followed = self._runner.record_steps(image_keys, (_EARLY,), stop_after=True)
        self.own_nfe += self.nfe - before
        for image_key, (shares,) in zip(image_keys, self._look(followed, layers), strict=True):
            row = np.full(len(self._layers), np.nan)
            row[np.searchsorted(self._layers, layers)] = shares
            self._early[image_key] = row

    def reorder(self, order: Sequence[ImageKey]) -> None:
        """Goes on in another order, and forgets what was seen of images that are not in it."""
        self.order = list(order)
        for seen in (self._over_frames, self._early):
            for image_key in set(seen) - set(order):
                del seen[image_key]

    def nfe_of_screening(self, frames: int = 1) -> float:
        """The rows that looking at so many frames of a run takes at most: the frame's again, the total effect's, and each layer's."""
        return frames * (2.0 + len(self._layers))

    def nfe_of_truncated_run(self, layers: int) -> float:
        """The rows that a beginning takes at most: its own, the frame's again, the total effect's, and each layer's."""
        return self._beginning * self.run_nfe + 2 + layers

    def parts(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """The part that each of these layers has in what they do together."""
        shares = self.shares.mean(axis=0)[np.searchsorted(self._layers, layers)].clip(min=0) + 1e-3
        result: Float[np.ndarray, "layer"] = shares / shares.sum()
        return result

    def strongest(self) -> list[int]:
        """The layers that look strong over all images, and each image's own strongest."""
        means = self.shares.mean(axis=0)
        strong = [number for number in np.argsort(-means, kind="stable")[:_STRONGEST] if means[number] >= _CLOSE * means.max()]
        own = [int(each.argmax()) for each in self.shares if each.any()]
        return [int(self._layers[number]) for number in dict.fromkeys([*strong, *own])]

    def largest(self, group: Patch) -> float:
        """The part of a group's effect that one of its layers may have."""
        result: float = min(1.0, _UNEVEN * max(self.parts(group.layers)))
        return result

    def beside(self, effects: Effects) -> ControlVariates:
        """The effects of single layers in the images that were made, beside what is predicted of these and of others."""
        values = self.in_order(effects)
        numbers = np.searchsorted(self._layers, [each.layers[0] for each in effects.patches])
        predicted = np.full(values.shape, np.nan)
        changes = self._ordered(effects, effects.total[None].numpy())
        full = changes[~np.isnan(changes)].sum() / max(1, int((~np.isnan(changes)).sum()))
        for image_key, shares in self._early.items():
            predicted[:, self.order.index(image_key)] = full * shares[numbers]
        return ControlVariates(values, predicted)

    def in_order(self, effects: Effects) -> Float[np.ndarray, "patch image"]:
        """The effects in the order of the images."""
        return self._ordered(effects, effects.values.numpy())

    def _ordered(self, effects: Effects, values: Float[np.ndarray, "patch prompt seed"]) -> Float[np.ndarray, "patch image"]:
        pairs, seeds = zip(*self.order, strict=True)
        return values[:, pairs, [effects.seeds.index(seed) for seed in seeds]]

    @property
    def _unseen(self) -> list[ImageKey]:
        return [image_key for image_key in self.order if image_key not in self._early]

    def _look(self, followed: Mapping[ImageKey, Sequence[StepInput]], layers: Sequence[int]) -> list[np.ndarray]:
        """For each image [frame, layer]."""
        runner, before = self._runner, self.nfe
        look = partial(forced_shares, runner.spec.roles, self._forcing, layers=layers)
        found = [
            np.nan_to_num([look(frame, runner.target(pair), runner.spec.texts(runner.experiment.pairs[pair])) for frame in frames])
            for (pair, _), frames in followed.items()
        ]
        self.own_nfe += self.nfe - before
        return found


def by_image(values: Float[np.ndarray, "image"], order: Sequence[ImageKey], effects: Effects) -> Float[np.ndarray, "prompt seed"]:
    """The inverse of `ScreenedEffects.in_order` for one patch."""
    table = np.full((len(effects.prompts), len(effects.seeds)), np.nan)
    for value, (pair, seed) in zip(values, order, strict=True):
        table[pair, effects.seeds.index(seed)] = value
    return table
