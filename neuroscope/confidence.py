"""How sure a search is of its answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Float

from neuroscope._checks import finite, whole

#: No search is surer than this where single predictions or short runs stand for pictures.
LIKELY = 0.9


@dataclass(frozen=True)
class Confidence:
    """How sure a search is that an exhaustive sweep over the same pictures would name the same layer.

    Attributes:
        probability: from 0 to 1.
        alone: the layers that were measured alone; the others were measured together.
        pictures: on how many pictures.
        of: how many an exhaustive sweep has.
        screened: on how many the layers were compared, with those of which only single predictions were seen; 0 where that
            added nothing.
        tied: the layers between which no difference was found, in order; none where one is ahead.

    Raises:
        InvalidInput: a probability outside 0 to 1, or a number that is negative or not whole.
    """

    probability: float
    alone: tuple[int, ...]
    pictures: int
    of: int
    screened: int = 0
    tied: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        finite("the confidence's probability", self.probability, least=0, most=1)
        for name in ("alone", "tied"):
            object.__setattr__(self, name, tuple(whole("a layer", each, least=0) for each in getattr(self, name)))
        for name in ("pictures", "of", "screened"):
            whole(f"the confidence's {name}", getattr(self, name), least=0)

    def __str__(self) -> str:
        layers = f"{len(self.alone)} layer{'s' * (len(self.alone) != 1)} alone"
        sure = f"{100 * self.probability:.0f} % sure that all windows would say the same"
        seen = f", and screened on {self.screened}" if self.screened else ""
        return f"{sure} ({layers}, on {self.pictures} of {self.of} pictures{seen})"


def chance_of_fewer(known: int, of: int) -> float:
    """The chance that images drawn at random are all of the smaller half: a bound where they all say the same."""
    half = (of - 1) // 2
    return float(np.prod([(half - drawn) / (of - drawn) for drawn in range(known)])) if known <= half else 0.0


def chance_of_tie(known: int, of: int) -> float:
    """The chance that prompts drawn at random all say the same although just half of all do; 0 where no half is a number of them."""
    half = of // 2
    if of % 2 or known > half:
        return 0.0
    return min(1.0, 2 * float(np.prod([(half - drawn) / (of - drawn) for drawn in range(known)])))


def chance_of_none(known: int, of: int, share: float) -> float:
    """The chance that images drawn at random all lack what this share of all images has, or the least number that is no less."""
    having = max(1, int(np.ceil(round(share * of, 9))))
    return float(scipy.stats.hypergeom.pmf(0, of, having, min(known, of)))


def chance_of_reverse(differences: Float[np.ndarray, "picture"], of: int) -> float:
    """The chance that the mean over all pictures is not above 0, by Student's t with the correction for a finite number of them."""
    known = len(differences)
    mean = float(differences.mean()) if known else 0.0
    if known == of:
        return float(mean < 0)
    if known < 2:
        return 0.5
    error = float(differences.std(ddof=1)) * np.sqrt((1 - known / of) / known)
    if error == 0:
        return 0.0 if mean > 0 else 0.5 if mean == 0 else 1.0
    return float(scipy.stats.t.sf(mean / error, known - 1))
