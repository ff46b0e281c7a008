"""How far predictions are from those for another prompt, with gradients for what sites read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.attribution.patching_metric import HALF, WIDER
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import NonFiniteActivation
from neuroscope.core.intervention import Call
from neuroscope.core.sites import TEXT_ROLES, Sites
from neuroscope.interventions import ContextSwap
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.recomputing import recomputed

#: In half precision the distance is multiplied by the first of these with which no gradient overflows, so that small ones do not vanish:
#: float16 reaches from 6e-8 to 65,504.
_SCALES = (2.0**10, 2.0**4, 2.0**-2)


class TargetDistance:
    """The distance |p - t| of predictions p to the predictions t in which every text site reads the target's prompts.

    The unit is the standard deviation of noise: the distance is a root mean square over a prediction's numbers.

    Args:
        graph: the model.
        inputs: the denoiser's arguments, one row for each target.
        targets: the prompts without the concept, one a row.
        recompute: whether gradients compute the denoiser's blocks again instead of keeping what they give.

    Raises:
        NonFiniteActivation: a prediction is NaN or infinite.
    """

    def __init__(self, graph: HookGraph, inputs: Mapping[str, Any], targets: Conditions, recompute: bool = False) -> None:
        self._graph = graph
        self._inputs = inputs
        self._recomputed = partial(recomputed, uncompiled(graph.denoiser)) if recompute else nullcontext
        self._swaps = [
            ContextSwap.reading(targets[row], graph.sites.where(role=TEXT_ROLES).paths, rows="all") for row in range(len(targets))
        ]
        with torch.no_grad(), graph.apply_each([[swap] for swap in self._swaps]):
            self._target = self._predict()

    def gradients(
        self, sites: Sites, shares: Sequence[float]
    ) -> tuple[dict[str, Float[Tensor, "row *token neuron"]], Float[Tensor, "row"]]:
        """Gradients of the negative distance with respect to what sites give, and the distances, both in float64.

        Args:
            sites: key and value sites, of which each row reads a share of the target's prompt.
            shares: of each row, from 0 (the source's prompt) to 1.

        Raises:
            NonFiniteActivation: a gradient is NaN or infinite.
        """
        kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, call: Call) -> None:
            kept.setdefault(call.site.path, activation.requires_grad_())

        moved = [[replace(swap, paths=sites.paths, strength=share)] for swap, share in zip(self._swaps, shares, strict=True)]
        scales = _SCALES if self._target.dtype in HALF else (1.0,)
        frozen, moving = _frozen(self._graph.denoiser), self._graph.apply_each(moved)
        with torch.enable_grad(), frozen, self._recomputed(), moving, self._graph.observe(sites, keep):
            difference = (self._predict() - self._target).flatten(1)
            distances = difference.double().norm(dim=1) / math.sqrt(difference.shape[1])
            for scale in scales:
                found = torch.autograd.grad(
                    -scale * distances.sum(), [kept[path] for path in sites.paths], retain_graph=scale != scales[-1]
                )
                if all(torch.isfinite(each).all() for each in found):
                    break
            else:
                raise NonFiniteActivation(f"a gradient is NaN or infinite in {self._target.dtype}; {WIDER}")
        return {path: each.double() / scale for path, each in zip(sites.paths, found, strict=True)}, distances.detach()

    def _predict(self) -> Tensor:
        denoiser = uncompiled(self._graph.denoiser)
        predicted: Tensor = self._graph.family.noise(denoiser, self._graph.denoiser(**self._inputs)[0])
        if not torch.isfinite(predicted).all():
            raise NonFiniteActivation(f"a prediction is NaN or infinite in {predicted.dtype}; {WIDER}")
        return predicted


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for weights inside the block, which would keep every activation that they meet."""
    trained = [each for each in module.parameters() if each.requires_grad]
    try:
        for each in trained:
            each.requires_grad_(False)
        yield
    finally:
        for each in trained:
            each.requires_grad_(True)
