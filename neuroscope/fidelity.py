"""How well a cheap ranking orders what it ranks: its rank correlation with exact effects on a small sample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import scipy.stats

from neuroscope._checks import finite, instance, whole
from neuroscope._errors import InvalidInput

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
