"""What an intervention becomes when it is written into weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

#: The current values of a parameter by its name inside the denoiser, such as "….to_v.weight" [out, in], in float64.
Weights = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class LinearUpdate:
    """A low-rank change of one linear module: `weight + left @ right`, `bias + bias`.

    Attributes:
        module: the module's path inside the denoiser.
        left: float64 [out, rank].
        right: float64 [rank, in].
        bias: float64 [out], or None.
    """

    module: str
    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]
    bias: Float[Tensor, "out"] | None = None

    @property
    def delta(self) -> Float[Tensor, "out in"]:
        """The change of the weight."""
        return self.left @ self.right
