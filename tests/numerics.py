"""How close two computations of one result are: as close as rounding allows, whatever order a processor adds in.

A result that `terms` roundings made errs by about eps · sqrt(terms), as a random walk does; the factor covers its tails.
"""

import math

import numpy as np
import torch
from torch import Tensor

FACTOR = 16
#: The roundings on one path through a tiny pipeline's run: 2 steps of 200 modules that each sum up to 2000 products.
NETWORK = 10**6


def rounding(dtype: torch.dtype = torch.float64, *, terms: int = 1, scale: float = 1.0) -> float:
    """The largest difference that rounding explains between two computations in `dtype` of a result of size `scale`."""
    return FACTOR * torch.finfo(dtype).eps * math.sqrt(terms) * scale


def close(actual, expected, *, terms: int = NETWORK, scale: float | None = None, dtype: torch.dtype | None = None) -> None:
    """Asserts that two tensors or arrays of one shape are equal up to rounding.

    Args:
        actual: as computed by the package.
        expected: as computed by other means.
        terms: roundings on the path to each number.
        scale: the size of what was summed; by default the largest of `expected`.
        dtype: what both were computed in; by default the narrower of theirs.
    """
    mine, other = (each.detach() if isinstance(each, Tensor) else torch.as_tensor(np.asarray(each)) for each in (actual, expected))
    dtype = dtype or max(mine.dtype, other.dtype, key=lambda each: torch.finfo(each).eps)
    scale = float(other.abs().max()) if scale is None else scale
    torch.testing.assert_close(mine.double(), other.double(), rtol=0, atol=rounding(dtype, terms=terms, scale=scale))
