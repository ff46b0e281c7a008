"""How far predictions are from those for another prompt, with gradients for what sites read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from neuroscope.pipeline.hooking.recomputing import recomputed

#: In half precision the distance is multiplied by the first of these with which no gradient overflows, so that small ones do not vanish:
#: float16 reaches from 6e-8 to 65,504.
_SCALES = (2.0**10, 2.0**4, 2.0**-2)

#: The denoiser's predictions, from its arguments by name.
Predict = Callable[[Mapping[str, Any]], Tensor]


class _OfPrompts:
    """How sites move to targets where what they read depends on the prompt alone."""

    def __init__(self, graph: HookGraph, targets: Conditions) -> None:
        self._graph = graph
        self._swaps = [
            ContextSwap.reading(targets[row], graph.sites.where(role=TEXT_ROLES).paths, rows="all") for row in range(len(targets))
        ]
        self._targets = targets

    def told(self, inputs: Mapping[str, Any], predict: Predict) -> Tensor:
        """The predictions in which every text site reads the targets."""
        with self._graph.apply_each([[swap] for swap in self._swaps]):
            return predict(inputs)

    @contextmanager
    def moved(self, sites: Sites, shares: Sequence[float]) -> Iterator[dict[str, Tensor]]:
        """Inside the block each row's sites read a share of its target; what they give is kept by path, for gradients."""
        kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, call: Call) -> None:
            kept.setdefault(call.site.path, activation.requires_grad_())

        moved = [[replace(swap, paths=sites.paths, strength=share)] for swap, share in zip(self._swaps, shares, strict=True)]
        with self._graph.apply_each(moved), self._graph.observe(sites, keep):
            yield kept

    @torch.no_grad()
    def changes(self, sites: Sites, source: Conditions) -> dict[str, Tensor]:
        """What sites give of the targets minus what they give of the sources."""

        def given(conditions: Conditions) -> dict[str, Tensor]:
            return {site.path: self._graph.module(site)(read).double() for site, read in self._graph.text.read_each(sites, conditions)}

        before, after = given(source), given(self._targets)
        return {path: after[path] - before[path] for path in sites.paths}


class _OfBlocks:
    """How sites move to targets where blocks rewrite the text, so that what sites read depends on the step and the image as well.

    What sites give of the targets is what they give in the calls that predict the targets, from the same noisy latents.
    """

    def __init__(self, graph: HookGraph, targets: Conditions) -> None:
        self._graph, self._targets = graph, targets
        self._others: dict[str, Tensor] = {}
        self._changes: dict[str, Tensor] = {}

    def told(self, inputs: Mapping[str, Any], predict: Predict) -> Tensor:
        """The predictions of the denoiser that is told the targets, pooled text included."""

        def keep(activation: Tensor, call: Call) -> None:
            self._others[call.site.path] = activation.clone()

        names, told = self._graph.family.arguments, {"context": self._targets.context, "pooled": self._targets.pooled}
        given = {names[kind]: value.to(inputs[names[kind]]) for kind, value in told.items() if value is not None and kind in names}
        with self._graph.observe(self._graph.sites.at(self._graph.spec.rewritten), keep):
            return predict({**inputs, **given})

    @contextmanager
    def moved(self, sites: Sites, shares: Sequence[float]) -> Iterator[dict[str, Tensor]]:
        """As `_OfPrompts.moved`: the image reads a share of the targets' text, and the blocks' own text goes on."""
        kept: dict[str, Tensor] = {}

        def move(own: Tensor, call: Call) -> Tensor:
            path = call.site.path
            other = self._others[path]
            moved = own.lerp(other, other.new_tensor(shares).view(-1, 1, 1)).requires_grad_()
            if kept.setdefault(path, moved) is moved:  # a block that is computed again gives the same again
                self._changes[path] = other.double() - own.detach().double()
            return moved

        with self._graph.change_reads(sites, move):
            yield kept

    def changes(self, sites: Sites, _source: Conditions) -> dict[str, Tensor]:
        """What sites gave of the targets minus what they gave of the rows' own text, in the latest call of moved rows."""
        return {path: self._changes[path] for path in sites.paths}


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
        self._text = (_OfBlocks if graph.spec.rewritten else _OfPrompts)(graph, targets)
        with torch.no_grad():
            self._target = self._text.told(inputs, self._predict)

    def drops(self, sites: Sites, shares: Sequence[float], source: Conditions) -> tuple[Float[Tensor, "row neuron"], Float[Tensor, "row"]]:
        """How fast the distance drops with each neuron's share, all others' shares held fixed, and the distances, both in float64.

        That is a neuron's gradient times its change from the source's prompt to the target's, summed over tokens.

        Args:
            sites: see `gradients`.
            shares: see `gradients`.
            source: the prompts with the concept, one a row.
        """
        slopes, distances = self.gradients(sites, shares)
        changes = self._text.changes(sites, source)
        return torch.cat([(slopes[path] * changes[path]).sum(dim=1) for path in sites.paths], dim=1), distances

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
        scales = _SCALES if self._target.dtype in HALF else (1.0,)
        frozen, moving = _frozen(self._graph.denoiser), self._text.moved(sites, shares)
        with torch.enable_grad(), frozen, self._recomputed(), moving as kept:
            difference = (self._predict(self._inputs) - self._target).flatten(1)
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

    def _predict(self, inputs: Mapping[str, Any]) -> Tensor:
        denoiser = uncompiled(self._graph.denoiser)
        predicted: Tensor = self._graph.family.noise(denoiser, self._graph.denoiser(**self._graph.family.spread(inputs))[0])
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
