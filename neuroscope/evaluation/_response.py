"""A dose response: scores of masks of growing size, and the smallest that suffices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.artifacts import Artifact, Provenance, take
from neuroscope.core.errors import InvalidInput, NoSmallestMask, counted
from neuroscope.core.results.effects import Effects, Patch
from neuroscope.core.results.quality import HALVED
from neuroscope.core.sharing.summary import Summary
from neuroscope.core.statistics import is_share
from neuroscope.evaluation._image_change import ImageChange

NO_CHANGE, TOP, RANDOM, ALL = "no change", "top neurons", "random neurons", "all neurons"
#: The doses that the others are compared with: the untouched model, and all neurons.
REFERENCES = (NO_CHANGE, ALL)
SHARE_OF_IMAGES, SCORE, PIXELS = "share of images", "score", "RMS of pixels"


@dataclass(frozen=True)
class Dose:
    """How many neurons are masked, and which.

    Attributes:
        neurons: how many.
        control: "no change", "top neurons", "random neurons" or "all neurons".
    """

    neurons: int
    control: str

    def __str__(self) -> str:
        return f"{self.neurons} {self.control}" if self.control != ALL else f"all {counted(self.neurons, 'neuron')}"


@dataclass(frozen=True)
class DoseResponseHeader:
    """What a file's header says of a dose response beside the numbers."""

    doses: tuple[Dose, ...]
    metrics: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    unrelated_prompts: tuple[str, ...]
    provenance: Provenance
    halved: int = 0


@dataclass(frozen=True, eq=False)
class DoseResponse(Artifact):
    """What masks of the k strongest neurons do, for growing k, beside as many random neurons, none, and all.

    Attributes:
        doses: first no change, last all scored neurons, and between them for each k the strongest and the random ones.
        metrics: their names; the first is the concept's, and the others measure side effects.
        prompts: the prompts with the concept.
        seeds: of the initial noise.
        scores: float64 [metric, dose, prompt, seed]; NaN where a metric says nothing.
        unrelated_prompts: the prompts without the concept.
        changes: float64 [dose, unrelated, seed], how much the masks change the images of these: the root mean square of the difference of
            pixels, 0 to 1. None without such prompts.
        provenance: where the ranking comes from, and the model that was evaluated.
        halved: how many images were made in groups that did not fit the memory and were halved; see `Cost`.

    Raises:
        InvalidInput: doses out of order, numbers of other sizes, or infinite ones.
    """

    kind: ClassVar[str] = "dose-response"
    header_type: ClassVar[type] = DoseResponseHeader

    doses: tuple[Dose, ...]
    metrics: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Float[Tensor, "metric dose prompt seed"] = field(repr=False)
    unrelated_prompts: tuple[str, ...] = ()
    changes: Float[Tensor, "dose unrelated seed"] | None = field(default=None, repr=False)
    provenance: Provenance = Provenance()
    halved: int = 0

    def __post_init__(self) -> None:
        counts = [dose.neurons for dose in self.doses]
        if len(counts) < 2 or counts != sorted(counts) or self.doses[0] != Dose(0, NO_CHANGE) or self.doses[-1].control != ALL:
            raise InvalidInput(f"the doses are {', '.join(map(str, self.doses)) or 'none'}; give no change, growing ones, and all neurons")
        checks.whole("halved", self.halved, least=0)
        size = (len(self.doses), len(self.prompts), len(self.seeds))
        _check("scores", self.scores, (len(self.metrics), *size))
        if self.changes is not None or self.unrelated_prompts:
            _check("changes of images", self.changes, (len(self.doses), len(self.unrelated_prompts), len(self.seeds)))
            if self.changes is not None and not (self.changes >= 0).all():
                raise InvalidInput("the changes of images hold NaN or a number below 0; give distances")

    def __repr__(self) -> str:
        counts = ", ".join(str(each) for each in self.budgets) or "none"
        images = f"{counted(len(self.prompts), 'prompt')}, {counted(len(self.seeds), 'seed')}{self._said_of_halved}"
        return (
            f"DoseResponse({self.provenance.concept!r}, {self.metrics[0]!r}: {counts} of {counted(self.neuron_count, 'neuron')}; {images})"
        )

    @property
    def _said_of_halved(self) -> str:
        return f"; {counted(self.halved, 'image')} {HALVED}" if self.halved else ""

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of masked neurons between none and all."""
        return tuple(dose.neurons for dose in self.doses if dose.control == TOP)

    @property
    def neuron_count(self) -> int:
        """The number of all scored neurons."""
        return self.doses[-1].neurons

    def smallest(self, share: float = 0.9, confidence: float = 0.95) -> int:
        """The smallest number of strongest neurons that surely has this share of the effect of all: the interval lies above it.

        Args:
            share: of the effect of all scored neurons, above 0 and below 1.
            confidence: of the interval, see `shares`.

        Raises:
            NoSmallestMask: all neurons together have no effect, or no number of them has enough on so few prompts.
            InvalidInput: a share or a confidence out of range.
        """
        share = checks.finite("share", share, above=0, most=1 - 1e-9)
        if not self._effects(-1).is_moved():
            before, after = (float(self.scores[0, dose].nanmean()) for dose in (0, -1))
            raise NoSmallestMask(
                f"a mask of all {counted(self.neuron_count, 'neuron')} does not move {self.metrics[0]!r} ({before:.3g} before, "
                f"{after:.3g} with all masked); rank the neurons of the layer that carries the concept, or choose another fill"
            )
        found = self.shares(confidence)
        found = found[found["control"].isin((TOP, ALL))]
        enough = found[found["low"] > share]
        if not len(enough):
            best = found.iloc[int(np.argmax(found["low"].fillna(-np.inf)))]
            which = f"{counted(int(best['neurons']), 'neuron')} {'has' if best['neurons'] == 1 else 'have'}"
            said = f"{which} {best['share']:.2f} [{best['low']:.2f}, {best['high']:.2f}] of it"
            raise NoSmallestMask(f"no mask surely has {share:g} of the effect of all neurons: {said}; {self._advice(share, confidence)}")
        return int(enough["neurons"].iloc[0])

    @property
    def sufficient(self) -> int | None:
        """See `smallest`; None where no mask surely has 0.9 of the effect of all."""
        try:
            return self.smallest()
        except NoSmallestMask:
            return None

    def shares(self, confidence: float = 0.95) -> pd.DataFrame:
        """Each mask's effect on the concept's metric as a share of the effect of all neurons, with its interval.

        An effect is the difference to the untouched model's image of the same prompt and seed. Where scores are 0 or 1 the interval is
        exact, of so many prompts as there are (Clopper and Pearson 1934); otherwise a bootstrap over prompts and seeds, paired.

        Returns:
            One row a mask: neurons, control, share, low, high.

        Raises:
            InvalidInput: a confidence out of range.
        """
        confidence = checks.finite("confidence", confidence, above=0, most=1 - 1e-9)
        rows = [(dose.neurons, dose.control, *self._share(number, confidence)) for number, dose in enumerate(self.doses) if number]
        return pd.DataFrame(rows, columns=["neurons", "control", "share", "low", "high"])

    def to_frame(self) -> pd.DataFrame:
        """One row an image and metric: intervention, control, neurons, prompt, seed, metric, unit, score; see `ns.plots.dose`."""
        parts = list(zip(self.metrics, self.scores, [self.prompts] * len(self.metrics), strict=True))
        if self.changes is not None:
            parts.append((ImageChange.name, self.changes, self.unrelated_prompts))
        rows = [
            (str(dose), dose.control, dose.neurons, prompt, seed, metric, unit, float(scores[row, column, place]))
            for metric, scores, prompts in parts
            for unit in [_unit(metric, scores)]
            for row, dose in enumerate(self.doses)
            for column, prompt in enumerate(prompts)
            for place, seed in enumerate(self.seeds)
        ]
        return pd.DataFrame(rows, columns=["intervention", "control", "neurons", "prompt", "seed", "metric", "unit", "score"])

    @property
    def verdict(self) -> str:
        """In words: how many neurons have 0.9 of the effect of all, and what as many random ones have."""
        try:
            count = self.smallest()
        except NoSmallestMask as error:
            return str(error)
        found = self.shares()
        said = [f"{row.control} {row.share:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in found[found["neurons"] == count].itertuples()]
        verb = "suffices" if count == 1 else "suffice"
        return f"{count} of {counted(self.neuron_count, 'neuron')} {verb}: of the effect of all, {', '.join(said)}"

    def summary(self) -> Summary:
        """See `Shown`: the smallest mask, each mask's share of the whole effect, and the concept's metric by number of neurons."""
        means = self.scores[0].reshape(len(self.doses), -1).nanmean(dim=1).tolist()
        heat = {
            control: [mean for dose, mean in zip(self.doses, means, strict=True) if dose.control in (control, *REFERENCES)]
            for control in (TOP, RANDOM)
        }
        counts = ", ".join(map(str, (0, *self.budgets, self.neuron_count)))
        return Summary.of(
            f"{self.metrics[0]}: {self.verdict}{self._said_of_halved}", self.shares(), heat, f"{self.metrics[0]}; {counts} neurons"
        )

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`."""
        tensors = {"measured": self.scores} | ({} if self.changes is None else {"changes": self.changes})
        named = {name: list(getattr(self, name)) for name in ("metrics", "prompts", "seeds", "unrelated_prompts")}
        doses = [asdict(dose) for dose in self.doses]
        return tensors, named | {"doses": doses, "provenance": asdict(self.provenance), "halved": self.halved}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: DoseResponseHeader) -> Self:
        """See `Artifact`."""
        return cls(
            doses=header.doses,
            metrics=header.metrics,
            prompts=header.prompts,
            seeds=header.seeds,
            scores=take(tensors, "measured", torch.float64),
            unrelated_prompts=header.unrelated_prompts,
            changes=take(tensors, "changes", torch.float64) if "changes" in tensors else None,
            provenance=header.provenance,
            halved=header.halved,
        )

    def _effects(self, *doses: int) -> Effects:
        """Masks' effects on the concept's metric, counted in the direction in which all neurons together move it."""
        total = self.scores[0, -1] - self.scores[0, 0]
        sign = -1 if float(total.nan_to_num().sum()) < 0 else 1
        values = sign * (self.scores[0, list(doses)] - self.scores[0, 0])
        return Effects(tuple(Patch((), str(self.doses[dose])) for dose in doses), self.prompts, self.seeds, values, sign * total)

    def _share(self, dose: int, confidence: float) -> tuple[float, float, float]:
        """One mask's share of the effect of all, and its interval."""
        is_counted = self._is_counted
        effects = self._effects(dose) if is_counted else self._effects(*range(len(self.doses)))  # whose intervals are then no counts'
        patch, whole = effects.patches[0 if is_counted else dose], effects.total_mean()
        if not whole:
            return math.nan, math.nan, math.nan
        values, total = effects.values[0].numpy(), effects.total.numpy()
        if is_counted and not (is_share(total) and (values[total == 0] == 0).all()):  # an image gained what others lost
            low, high = effects.intervals(confidence)[0] / whole
            return float(effects.means()[0]) / whole, float(low), float(high)
        share, low, high = effects.share_of(patch, confidence)
        return (share, low, high) if is_counted or len(self.prompts) > 1 else (share, math.nan, math.nan)

    @property
    def _is_counted(self) -> bool:
        """Whether the concept's metric is 0 or 1 in every image."""
        return is_share(self.scores[0].numpy())

    def _advice(self, share: float, confidence: float) -> str:
        """What to do where no interval lies above a share."""
        prompts = "give more prompts"
        if self._is_counted:
            needed = math.ceil(math.log((1 - confidence) / 2) / math.log(share))
            prompts += f" (at least {needed}, if all of them show it)" if len(self.prompts) < needed else ""
        return f"{prompts}, or other budgets"


def _check(name: str, values: Any, size: tuple[int, ...]) -> None:
    if not isinstance(values, Tensor) or tuple(values.shape) != size or 0 in size:
        raise InvalidInput(f"the {name} have shape {tuple(getattr(values, 'shape', ()))}; give {size}, with at least one of each")
    if torch.isinf(values).any():
        raise InvalidInput(f"the {name} hold infinity; give finite numbers, or NaN where nothing is known")


def _unit(metric: str, scores: Tensor) -> str:
    return PIXELS if metric == ImageChange.name else SHARE_OF_IMAGES if is_share(scores.numpy()) else SCORE
