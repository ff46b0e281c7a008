"""Low-rank matrices as two factors."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

#: Singular values below this share of the largest are rounding.
ROUNDING = 1e-13


def balanced(
    left: Float64[Tensor, "row inner"], right: Float64[Tensor, "inner column"]
) -> tuple[Float64[Tensor, "row rank"], Float64[Tensor, "rank column"]]:
    """`left @ right` as two factors of its own rank and of equal size, so that a narrower format holds them well.

    The product is U S Vᵀ by singular values; the factors are U S^½ and S^½ Vᵀ. Only matrices of the inner size are decomposed,
    after a QR decomposition of both factors.

    Args:
        left: the first factor.
        right: the second factor.

    Returns:
        Factors in which singular values below `ROUNDING` of the largest are left out.
    """
    basis, inner = torch.linalg.qr(left)
    other, outer = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(inner @ outer.T, full_matrices=False)
    chosen = s > s[0] * ROUNDING
    scale = s[chosen].sqrt()
    return basis @ u[:, chosen] * scale, (other @ v[chosen].T * scale).T
