"""Constants as linear maps of the text: rows whose product with every token of every prompt is 1."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from neuroscope.core.errors import InvalidInput
from neuroscope.core.sites import Sites
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.weights import read_parameter

#: The largest error of a constant, as a share of it, that roundings may make.
MAX_ERROR = 1e-3
#: Prompts on which a row is checked, through the pipeline's own text encoder.
PROBES = ("", "a photo of a cat", "a red circle, in the style of a blue star")
_ROUNDINGS = 4  # so many in each number of a normalised vector


class Constant(NamedTuple):
    """A row r with r · x = 1 for every vector x.

    Attributes:
        row: r.
        amplification: an upper bound of Σ |r_i x_i|: roundings of row and vectors are so much larger in their product.
    """

    row: Float64[Tensor, "channel"]
    amplification: float

    def error(self, *dtypes: torch.dtype) -> float:
        """The largest error of the product where row and vectors are rounded to these formats."""
        return self.amplification * sum(torch.finfo(each).eps / 2 for each in dtypes)


def constant_of(gain: Float64[Tensor, "channel"], shift: Float64[Tensor, "channel"]) -> Constant:
    """The row for what a LayerNorm with gain γ and shift β gives, whatever it is given.

    Its x = γ n + β have Σ n = 0, hence Σ x/γ = Σ β/γ = c, and r = 1/(γ c). Channels with γ = 0 are constant themselves.
    Without a shift (c = 0) no linear map is constant, and the amplification is infinite.
    """
    still = gain == 0
    row = torch.where(still, shift, 0.0) if still.any() else 1 / gain
    total = float(row @ shift)
    if total == 0:
        return Constant(torch.zeros_like(gain), math.inf)
    largest = float((row * gain).abs().max()) * len(gain) + float((row * shift).abs().sum())  # Σ |n| is at most the width
    return Constant(row / total, largest / abs(total))


def constant_at(graph: HookGraph, sites: Sites, dtype: torch.dtype) -> Float64[Tensor, "channel"]:
    """The row for what these text-side sites read.

    Args:
        graph: the model.
        sites: they read the context of prompts.
        dtype: in which the row will be stored.

    Raises:
        InvalidInput: the text encoder does not end in an affine LayerNorm, the sites read something else than it gives, or
            roundings would make an error above `MAX_ERROR`.
    """
    names = _norm(graph)
    if names is None:
        raise _refusal(sites, "only where one text encoder ends in a LayerNorm with a gain and a shift")
    gain, shift = (read_parameter(graph.text.encoders[0], name) for name in names)
    found = constant_of(gain.double(), shift.double())
    error = found.error(dtype, gain.dtype)
    if error > MAX_ERROR:
        size = f"up to {error:.2%} of it" if math.isfinite(error) else "any size, because the text encoder's last norm has no shift"
        formats = " and ".join(dict.fromkeys(str(each).removeprefix("torch.") for each in (dtype, gain.dtype)))
        raise _refusal(sites, f"in {formats} only with an error of {size}; {MAX_ERROR:.1%} is allowed")
    allowed = found.error(*[gain.dtype] * 2 * _ROUNDINGS)
    for site, read in graph.text.read_each(sites, graph.text.conditions(PROBES)):
        if read.shape[-1] != len(gain) or (read.double().cpu() @ found.row - 1).abs().max() > allowed:
            raise _refusal(sites, f"only where layers read what the text encoder's last norm gives, and {site.path} does not")
    return found.row


def _refusal(sites: Sites, reason: str) -> InvalidInput:
    advice = "make the mask with fill=0, or write it into the weights with ns.fold"
    return InvalidInput(f"the mask's fill adds a constant to {sites[0].path}, which a LoRA can hold {reason}; {advice}")


def _norm(graph: HookGraph) -> tuple[str, str] | None:
    """The names of gain and shift of the norm in which the one text encoder ends."""
    if len(graph.text.encoders) != 1:
        return None
    norms = [(name, module) for name, module in graph.text.encoders[0].named_modules() if isinstance(module, nn.LayerNorm)]
    if not norms or norms[-1][1].weight is None or norms[-1][1].bias is None:
        return None
    return f"{norms[-1][0]}.weight", f"{norms[-1][0]}.bias"
