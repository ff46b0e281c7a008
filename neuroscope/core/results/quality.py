"""How much to trust a result, and what it cost: NFE, rank correlation with exact effects, and a search's confidence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import scipy.stats
from jaxtyping import Float

from neuroscope.core.checks import finite, instance, whole
from neuroscope.core.errors import InvalidInput, counted

#: What is said of images whose group did not fit the memory.
HALVED = "in groups halved to fit the memory"


@dataclass(frozen=True)
class Cost:
    """What a computation cost.

    Attributes:
        nfe: function evaluations of the denoiser: one image's row through it once. Exact, and the same on every machine. A row
            that begins midway counts as the share of a row's floating-point operations that it runs.
        seconds: wall time.
        peak_bytes: the highest memory in use so far: of the accelerator, or on the CPU of the whole process.
        halved: how many images were made in groups that did not fit the memory and were halved. Images that share a batch are rounded
            together, so that the last digits of these can differ from those of a run with room.

    Raises:
        InvalidInput: a number that is negative or not finite.
    """

    nfe: int | float = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    halved: int = 0

    def __post_init__(self) -> None:
        finite("the cost's nfe", self.nfe, least=0)
        finite("the cost's seconds", self.seconds, least=0)
        whole("the cost's peak_bytes", self.peak_bytes, least=0)
        whole("the cost's halved", self.halved, least=0)

    def __str__(self) -> str:
        halved = f", {counted(self.halved, 'image')} {HALVED}" if self.halved else ""
        return f"{self.nfe:,.0f} NFE, {self.seconds:.1f} s, peak {self.peak_bytes / 2**30:.2f} GiB{halved}"

    def __add__(self, other: Cost) -> Cost:
        peak = max(self.peak_bytes, other.peak_bytes)
        return Cost(self.nfe + other.nfe, self.seconds + other.seconds, peak, self.halved + other.halved)


@dataclass(frozen=True)
class Plan:
    """What a computation will cost, as far as that is known before it runs.

    Attributes:
        images: how many runs of the pipeline go to their end.
        nfe: as in `Cost`, of all that runs.
        is_bound: whether these are upper bounds, because the computation stops once it has found enough.

    Raises:
        InvalidInput: a number that is negative or not finite.
    """

    images: int
    nfe: int | float
    is_bound: bool = False

    def __post_init__(self) -> None:
        whole("the plan's images", self.images, least=0, most=math.inf)
        finite("the plan's nfe", self.nfe, least=0)

    def __str__(self) -> str:
        images = counted(self.images, "image")
        return f"{'at most ' * self.is_bound}{images}, {self.nfe:,.0f} NFE"


_CONFIDENT = 0.95


@dataclass(frozen=True)
class Fidelity:
    """The rank correlation (Spearman's) of a ranking with exact effects, on a sample on which both are known.

    Attributes:
        correlation: from -1 to 1; NaN where all estimates or all effects are equal, so that there is no order.
        low, high: its 95 % interval.
        count: how many were sampled.
        of: what was sampled, such as "random neurons".

    Raises:
        InvalidInput: a number that is no correlation, an interval without it, or no sample.
    """

    correlation: float
    low: float
    high: float
    count: int
    of: str = "random neurons"

    def __post_init__(self) -> None:
        defined = isinstance(self.correlation, bool) or not isinstance(self.correlation, float) or not math.isnan(self.correlation)
        for name in ("correlation", "low", "high") if defined else ("low", "high"):
            finite(f"the fidelity's {name}", getattr(self, name), least=-1, most=1)
        if self.low > self.high:
            raise InvalidInput(f"the fidelity's interval [{self.low}, {self.high}] is empty; give the lower end first")
        whole("the fidelity's count", self.count)
        instance("what the fidelity is of", self.of, str, '"random neurons"')

    def to_header(self) -> dict[str, Any]:
        """All of it as plain values; None stands for an undefined correlation."""
        return asdict(self) | {"correlation": None if math.isnan(self.correlation) else self.correlation}

    def __str__(self) -> str:
        found = "undefined" if math.isnan(self.correlation) else f"{self.correlation:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"rank correlation with exact effects {found} over {self.count} {self.of}"

    @classmethod
    def between(cls, estimates: Sequence[float] | np.ndarray, effects: Sequence[float] | np.ndarray, of: str = "random neurons") -> Self:
        """The fidelity of estimates [sample] to exact effects [sample] of the same things.

        The interval is Fisher's with Bonett and Wright's variance for ranks (2000), `(1 + r²/2) / (n - 3)`; a perfect order
        is taken half of the smallest possible step short of 1, as a few samples cannot show more. Of three nothing is known.

        Raises:
            InvalidInput: the two differ in number, or are fewer than three.
        """
        count = len(estimates)
        if count != len(effects) or count < 3:
            raise InvalidInput(f"fidelity compares as many estimates as effects, not {count} and {len(effects)}; give at least 3 of each")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
            correlation = float(scipy.stats.spearmanr(estimates, effects).statistic)
        if math.isnan(correlation) or count == 3:
            return cls(correlation, -1.0, 1.0, count, of)
        short = 1 - 6 / (count * (count**2 - 1))
        middle = math.atanh(min(max(correlation, -short), short))
        reach = float(scipy.stats.norm.ppf((1 + _CONFIDENT) / 2)) * math.sqrt((1 + correlation**2 / 2) / (count - 3))
        low, high = math.tanh(middle - reach), math.tanh(middle + reach)
        return cls(correlation, min(low, correlation), max(high, correlation), count, of)


@dataclass(frozen=True)
class FidelityHeader:
    """What a file's header says of a fidelity, as `Fidelity.to_header` gives it."""

    correlation: float | None
    low: float
    high: float
    count: int
    of: str

    def restored(self) -> Fidelity:
        """The inverse of `Fidelity.to_header`."""
        correlation = math.nan if self.correlation is None else self.correlation
        return Fidelity(correlation, self.low, self.high, self.count, self.of)


#: No search is surer than this where single predictions or short runs stand for images.
MAX_SCREEN_CONFIDENCE = 0.9


@dataclass(frozen=True)
class Confidence:
    """How sure a search is that an exhaustive sweep over the same images would name the same layer.

    Attributes:
        probability: from 0 to 1.
        measured_layers: the layers that were measured alone; the others were measured together.
        measured_images: on how many images.
        total_images: how many an exhaustive sweep has.
        screened_images: on how many the layers were compared, with those of which only single predictions were seen; 0 where that
            added nothing.
        tied: the layers between which no difference was found, in order; none where one is ahead.

    Raises:
        InvalidInput: a probability outside 0 to 1, or a number that is negative or not whole.
    """

    probability: float
    measured_layers: tuple[int, ...]
    measured_images: int
    total_images: int
    screened_images: int = 0
    tied: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        finite("the confidence's probability", self.probability, least=0, most=1)
        for name in ("measured_layers", "tied"):
            object.__setattr__(self, name, tuple(whole("a layer", each, least=0) for each in getattr(self, name)))
        for name in ("measured_images", "total_images", "screened_images"):
            whole(f"the confidence's {name}", getattr(self, name), least=0)

    def __str__(self) -> str:
        layers = f"{counted(len(self.measured_layers), 'layer')} alone"
        sure = f"{100 * self.probability:.0f} % sure that all windows would say the same"
        seen = f", and screened on {self.screened_images}" if self.screened_images else ""
        return f"{sure} ({layers}, on {self.measured_images} of {counted(self.total_images, 'image')}{seen})"


def p_minority(known: int, of: int) -> float:
    """The chance that images drawn at random are all of the smaller half: a bound where they all say the same."""
    half = (of - 1) // 2
    return float(np.prod([(half - drawn) / (of - drawn) for drawn in range(known)])) if known <= half else 0.0


def p_tie(known: int, of: int) -> float:
    """The chance that prompts drawn at random all say the same although just half of all do; 0 where no half is a number of them."""
    half = of // 2
    if of % 2 or known > half:
        return 0.0
    return min(1.0, 2 * float(np.prod([(half - drawn) / (of - drawn) for drawn in range(known)])))


def p_none(known: int, of: int, share: float) -> float:
    """The chance that images drawn at random all lack what this share of all images has, or the least number that is no less."""
    having = max(1, int(np.ceil(round(share * of, 9))))
    return float(scipy.stats.hypergeom.pmf(0, of, having, min(known, of)))


def p_rank_reversal(differences: Float[np.ndarray, "image"], of: int) -> float:
    """The chance that the mean over all images is not above 0, by Student's t with the correction for a finite number of them."""
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
