"""What a denoiser is told by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditions:
    """Prompts as a pipeline's own text encoders give them to its denoiser.

    Attributes:
        context: [prompt, token, channel], what cross-attention reads.
        pooled: [prompt, summary], one summary a prompt, where the encoders give one beside the tokens (SDXL).
    """

    context: Float[Tensor, "prompt token channel"] = field(repr=False)
    pooled: Float[Tensor, "prompt summary"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, prompt: int) -> Conditions:
        """One prompt's conditions."""
        chosen = slice(prompt, prompt + 1 or None)
        return Conditions(self.context[chosen], None if self.pooled is None else self.pooled[chosen])

    @classmethod
    def of(cls, parts: Sequence[Conditions]) -> Self:
        """All prompts of several conditions, in order."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat([part.context for part in parts]), torch.cat(pooled) if pooled else None)

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Conditions:
        """The conditions on another device or in another number format."""
        return Conditions(self.context.to(device, dtype), None if self.pooled is None else self.pooled.to(device, dtype))
