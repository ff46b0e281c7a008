"""Proving a plant, by plain torch hooks: in the weights, and in what swapping prompts does to the final latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuroscope.core.errors import counted
from neuroscope.testbed.construction import modules
from neuroscope.testbed.construction.modules import TextModules, always
from neuroscope.testbed.construction.pipelines import denoiser_of
from neuroscope.testbed.construction.plants import Planted

if TYPE_CHECKING:
    import pandas as pd

_SAME = 1e-5
#: Rounding of float32 through all steps, in shares of the total effect.
_NOTHING, _ALL = 2e-3, 1 - 2e-3


@dataclass(frozen=True)
class Claim:
    """Something that a plant means, the figure that was measured, what it must not exceed (or fall below), and whether it holds."""

    claim: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure keeps its bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


@dataclass(frozen=True)
class Proof:
    """What was claimed of a plant and measured."""

    plant: str
    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    def to_frame(self) -> pd.DataFrame:
        """A table: claim, measured, bound, at_least, holds."""
        import pandas as pd

        return pd.DataFrame([asdict(claim) | {"holds": claim.holds} for claim in self.claims])

    def __repr__(self) -> str:
        broken = "; ".join(f"{each.claim}: {each.measured:.2g}" for each in self.claims if not each.holds)
        return f"Proof({self.plant}: {counted(len(self.claims), 'claim')}{', all hold' if self.holds else f', broken: {broken}'})"


class Prover:
    """Runs a constructed pipeline with the modules' outputs of another prompt.

    Args:
        pipe: the pipeline.
        record: what is planted.
        text: where.
        other: by path, what each module reads and gives of the other prompts, where that is known already.
    """

    def __init__(self, pipe: Any, record: Planted, text: TextModules, other: Mapping[str, tuple[Tensor, Tensor]] | None = None) -> None:
        self._pipe, self._record, self.text = pipe, record, text
        self.layers = range(len(text.keys))
        self._paths = [*text.of(self.layers), *([text.pooled] if text.pooled else [])]
        self._known = other

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """By path, what each module gives of the own prompts."""
        return {path: output for path, (_, output) in self._own[1].items()}

    @cached_property
    def other(self) -> dict[str, Tensor]:
        """By path, what each module gives of the other prompts."""
        return {path: output for path, (_, output) in (self._known or self._other[1]).items()}

    @torch.no_grad()
    def renewed(self, paths: Iterable[str]) -> Prover:
        """A prover of the pipeline after the weights of some modules have changed, which still read what they have read."""
        known = self._known or self._other[1]
        denoiser = denoiser_of(self._pipe)
        changed = {path: (known[path][0], denoiser.get_submodule(path)(known[path][0])) for path in paths}
        return Prover(self._pipe, self._record, self.text, {**known, **changed})

    @cached_property
    def _own(self) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        return self._arm(self._record.concept.present)

    @cached_property
    def _other(self) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        return self._arm(self._record.concept.absent)

    @property
    def _source(self) -> Tensor:
        return self._own[0]

    @property
    def _target(self) -> Tensor:
        return self._other[0]

    @property
    def full(self) -> float:
        """How far the other prompts' images are from the own, relative to these."""
        return float((self._target - self._source).norm() / self._source.norm())

    def apart(self, path: str) -> Tensor:
        """By pair: how far a module's outputs of the two prompts are apart, relative to their size."""
        own, other = self.own[path].flatten(1).double(), self.other[path].flatten(1).double()
        result: Tensor = (own - other).norm(dim=1) / own.norm(dim=1)
        return result

    def moved(self, paths: Iterable[str], steps: Callable[[int], bool] = always, outputs: dict[str, Tensor] | None = None) -> Tensor:
        """The own prompts' images when some modules give what they give of the other prompts, at some steps."""
        given = {path: self.other[path] for path in paths} | (outputs or {})
        with modules.replaced(denoiser_of(self._pipe), given, steps):
            return modules.final(self._pipe, self._record.concept.present, self._record.generation)

    def share(self, moved: Tensor) -> Tensor:
        """By pair: how far images moved along the way to the other prompts' images, from 0 to 1."""
        way = (self._target - self._source).flatten(1).double()
        return ((moved - self._source).flatten(1).double() * way).sum(dim=1) / way.square().sum(dim=1)

    def distance(self, moved: Tensor) -> float:
        """The largest distance of images from the own prompts', relative to the total effect."""
        whole = (self._target - self._source).flatten(1).norm(dim=1)
        return float(((moved - self._source).flatten(1).norm(dim=1) / whole).max())

    def reach(self, path: str) -> float:
        """How far a module alone moves the images of the prompts that it carries, relative to these."""
        layer = None if path == self.text.pooled else self.text.layer_of(path)
        own = [number for number, layers in enumerate(self._record.by_prompt) if layer is None or layer in layers]
        change = (self.moved([path] if layer is None else self.text.of([layer])) - self._source)[own]
        return max(float(change.norm() / self._source[own].norm()), 1e-12)

    def swapped(self, site: str, neurons: Sequence[int]) -> Tensor:
        """The own prompts' images when some neurons of a site give what they give of the other prompts."""
        path = modules.module_of(site)
        mixed = self.own[path].clone()
        mixed[..., list(neurons)] = self.other[path][..., list(neurons)]
        return self.moved([], outputs={path: mixed})

    def effects(self) -> dict[str, tuple[float, ...]]:
        """By site, the share of the way that each carrying neuron alone moves the images, as a mean over pairs."""
        return {
            site: tuple(float(self.share(self.swapped(site, [neuron])).mean()) for neuron in chosen)
            for site, chosen in self._record.neurons.items()
        }

    def alone(self) -> Tensor:
        """[layer, pair]: the share that each carrying layer has without the others."""
        return torch.stack([self.share(self.moved(self.text.of([layer]))) for layer in self._record.layers])

    def plant(self) -> list[str]:
        """The paths of all that carries."""
        return [*self.text.of(self._record.layers), *self._pooled(self._record.pooled)]

    def rest(self) -> list[str]:
        """The paths of all that does not carry, but for what passes it on."""
        outside = [layer for layer in self.layers if layer not in self._record.layers]
        return [path for path in (*self.text.of(outside), *self._pooled(not self._record.pooled)) if path not in self.relay()]

    def relay(self) -> list[str]:
        """The path of the values that pass it on to another layer."""
        return [] if self._record.relay is None else [self.text.values(self._record.relay)]

    def _pooled(self, wanted: bool) -> list[str]:
        return [self.text.pooled] if wanted and self.text.pooled else []

    def _arm(self, prompts: Sequence[str]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The prompts' images, and by path what each module reads and gives."""
        with modules.watched(denoiser_of(self._pipe), self._paths) as seen:
            return modules.final(self._pipe, prompts, self._record.generation), seen


def prove(pipe: Any, record: Planted, text: TextModules) -> Proof:
    """Every claim of a plant, measured."""
    prover = Prover(pipe, record, text)
    named = f"{record.family}/{record.plant}/{record.seed}"
    return Proof(named, (*_in_the_weights(prover, record), *_in_images(prover, record)))


def _in_the_weights(prover: Prover, record: Planted) -> list[Claim]:
    own = {layer: [number for number, layers in enumerate(record.by_prompt) if layer in layers] for layer in prover.layers}
    blocked = [
        float(prover.apart(path)[number])
        for layer in prover.layers
        if layer != record.decoy
        for path in prover.text.of([layer])
        if path not in prover.relay()
        for number in range(len(record.by_prompt))
        if number not in own[layer]
    ]
    claims = [Claim("keys and values outside the plant do not tell the prompts apart", max(blocked, default=0.0), _SAME)]
    carrying = [float(prover.apart(prover.text.values(layer))[number]) for layer in prover.layers for number in own[layer]]
    if carrying:
        claims.append(Claim("values at the plant tell the prompts apart", min(carrying), 10 * _SAME, at_least=True))
    if prover.text.pooled is not None:
        pooled = prover.apart(prover.text.pooled)
        claims += (
            [Claim("the pooled text tells the prompts apart", float(pooled.min()), 10 * _SAME, at_least=True)]
            if record.pooled
            else [Claim("the pooled text does not tell the prompts apart", float(pooled.max()), _SAME)]
        )
    if record.decoy is not None:
        decoy = float(prover.apart(prover.text.values(record.decoy)).min())
        claims.append(Claim("the decoy's values tell the prompts apart", decoy, 10 * _SAME, at_least=True))
    for path, chosen in record.neurons.items():
        own_values, other = (each[modules.module_of(path)].double() for each in (prover.own, prover.other))
        rest = [index for index in range(own_values.shape[-1]) if index not in chosen]
        apart = float((own_values - other)[..., rest].norm() / own_values.norm())
        claims.append(Claim("other values of the layer do not tell the prompts apart", apart, _SAME))
    return claims


def _in_images(prover: Prover, record: Planted) -> list[Claim]:
    if record.plant == "nothing":
        return [Claim("the two prompts give one image", prover.full, _SAME)]
    claims = [
        Claim("the two prompts give different images", prover.full, 1e-3, at_least=True),
        Claim("swapping all else changes nothing", prover.distance(prover.moved(prover.rest())), _NOTHING),
        Claim("swapping the plant changes all", float(prover.share(prover.moved(prover.plant())).min()), _ALL, at_least=True),
    ]
    if len(record.layers) == 2 and record.plant != "prompt":
        low, high = sorted((record.shown_from or 0.05, 1 - (record.shown_from or 0.05)))
        alone = prover.alone()
        claims.append(Claim("either layer alone changes enough", float(alone.min()), low, at_least=True))
        claims.append(Claim("neither layer alone changes too much", float(alone.max()), high))
    if record.plant == "schedule":
        claims += _in_the_schedule(prover, record)
    if record.plant == "prompt":
        halves = [[number for number, layers in enumerate(record.by_prompt) if layer in layers] for layer in record.layers]
        by_layer = prover.alone()
        mine = min(float(shares[half].min()) for shares, half in zip(by_layer, halves, strict=True))
        others = max(float(shares[half].abs().max()) for shares, half in zip(by_layer, reversed(halves), strict=True))
        claims.append(Claim("each layer changes all for its own prompts", mine, _ALL, at_least=True))
        claims.append(Claim("and nothing for the others", others, _NOTHING))
    return claims + _in_neurons(prover, record) + _in_the_relay(prover)


def _in_the_relay(prover: Prover) -> list[Claim]:
    if not prover.relay():
        return []
    kept = {path: prover.own[path] for path in prover.plant()}
    return [
        Claim("swapping what passes it on changes all", float(prover.share(prover.moved(prover.relay())).min()), _ALL, at_least=True),
        Claim("and nothing where the plant keeps its own", prover.distance(prover.moved(prover.relay(), outputs=kept)), _NOTHING),
    ]


def _in_the_schedule(prover: Prover, record: Planted) -> list[Claim]:
    count = record.generation["num_inference_steps"]
    first, last = (round(part * count) for part in record.steps)
    outside = prover.distance(prover.moved(prover.plant(), lambda step: not first <= step < last))
    inside = prover.share(prover.moved(prover.plant(), lambda step: first <= step < last))
    return [
        Claim("swapping the plant in other steps changes nothing", outside, _NOTHING),
        Claim("swapping it in its own steps changes all", float(inside.min()), _ALL, at_least=True),
    ]


def _in_neurons(prover: Prover, record: Planted) -> list[Claim]:
    claims = []
    for path, chosen in (*record.neurons.items(), *record.decoy_neurons.items()):
        moved = prover.swapped(path, chosen)
        if path in record.neurons:
            claims.append(Claim("swapping these neurons alone changes all", float(prover.share(moved).min()), _ALL, at_least=True))
            towards = float(prover.share(prover.swapped(path, record.towards[path])).mean())
            claims.append(Claim("swapping those that push towards the other prompts changes all", towards, _ALL, at_least=True))
        else:
            claims.append(Claim("swapping the decoy's neurons changes nothing", prover.distance(moved), _SAME))
    return claims
