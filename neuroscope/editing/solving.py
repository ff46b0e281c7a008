"""Solving for the low-rank map that takes keys to targets and leaves the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from neuroscope.core.errors import InvalidInput
from neuroscope.editing.factors import ROUNDING, balanced


class Solution(NamedTuple):
    """A map `x → x + (x @ readᵀ) @ write` of row vectors.

    Attributes:
        read, write: its factors, float64 [rank, channel], of equal size.
        penalty: the ridge λ that was added to the diagonal, in squared units of the vectors.
        condition: the largest over the smallest eigenvalue of the matrix that is inverted; rounding grows with it.
    """

    read: Float64[Tensor, "rank channel"]
    write: Float64[Tensor, "rank channel"]
    penalty: float
    condition: float


def solve(
    keys: Float64[Tensor, "key channel"],
    targets: Float64[Tensor, "key channel"],
    kept: Float64[Tensor, "kept channel"],
    ridge: float,
    weight: float,
) -> Solution:
    """The ridge regression of `targets - keys` (and of 0 at `kept`) on the vectors themselves.

    P = X̃ᵀ (X̃ X̃ᵀ + λ I)⁻¹ D̃, its rows scaled by the square roots of their weights, as balanced factors. This is the minimum of
    ‖X̃ P - D̃‖² + λ ‖P‖² in its dual form, whose matrix has as many rows as there are vectors. Where there are more of them than
    channels it is P = (X̃ᵀ X̃ + λ I)⁻¹ X̃ᵀ D̃, which is the same. For projections W it gives the edit of Basu et al. (2024),
    W' = W + W Pᵀ, with preserved vectors as in Gandikota et al. (2024).

    Args:
        keys: what is edited.
        targets: where it should go.
        kept: what should stay.
        ridge: λ in units of the keys' mean squared length.
        weight: how much a kept vector counts beside a key.

    Returns:
        The map, whose rank is at most the number of keys and kept vectors.

    Raises:
        InvalidInput: nothing to move, or without a ridge more vectors than they have dimensions.
    """
    moves = targets - keys
    if not len(keys) or not moves.any():
        raise InvalidInput("the prompts with and without the concept read the same at the edited tokens; give prompts that differ")
    vectors = torch.cat([keys, kept * weight**0.5])
    wanted = torch.cat([moves, torch.zeros_like(kept)])
    penalty = ridge * float(keys.square().sum(dim=1).mean())
    fewer = ridge > 0 and len(vectors) > vectors.shape[1]
    product = vectors.T @ vectors if fewer else vectors @ vectors.T
    gram = product + penalty * torch.eye(len(product), dtype=torch.float64)
    spectrum = torch.linalg.eigvalsh(gram)
    condition = float(spectrum[-1] / spectrum[0].clamp_min(torch.finfo(torch.float64).tiny))
    if not ridge and condition > 1 / ROUNDING:
        raise InvalidInput("the keys depend on each other, so without a ridge there is no one solution; give a ridge, such as 0.01")
    found = torch.linalg.solve(gram, vectors.T @ wanted if fewer else wanted)
    read, write = balanced(torch.eye(len(product), dtype=torch.float64) if fewer else vectors.T, found)
    return Solution(read.T.contiguous(), write.contiguous(), penalty, condition)
