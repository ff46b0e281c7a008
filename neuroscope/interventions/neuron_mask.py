"""Driving chosen neurons towards a value."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.artifacts import take
from neuroscope.core.checks import finite, instance, whole
from neuroscope.core.conditions import Rows
from neuroscope.core.errors import InvalidInput, UnknownSite, choose, counted
from neuroscope.core.intervention import Call, Intervention, ModelSpec, check_schedule_part
from neuroscope.core.results.scores import Neurons, NeuronsHeader
from neuroscope.core.sharing.summary import Summary
from neuroscope.core.sites import Sites


@dataclass(frozen=True)
class NeuronMaskHeader(NeuronsHeader):
    """What a saved mask's header says beside its tensors."""

    strength: float
    rows: Rows
    tokens: tuple[int, ...] | None
    steps: tuple[float, float]


@dataclass(frozen=True, eq=False)
class NeuronMask(Intervention):
    """Drives chosen neurons towards a fill value: `activation + strength · (fill - activation)`.

    Attributes:
        neurons: which neurons of which sites.
        fill: the value to drive to: a number for all (0 is dropout), or for each path a tensor, either of the whole site
            [neuron], such as `recording.mean("absent")`, or of the chosen neurons alone, in the order in which `Neurons` was
            given them (sorted where it was made otherwise, as by `scores.top`). A tensor as long as the site is of the whole
            site. It is kept for the chosen ones, sorted like them.
        strength: 0 leaves the model unchanged, 1 puts the fill in; negative or larger values move away or beyond.
        rows: "conditional" (the rows that carry the prompt) or "all".
        tokens: positions to change; by default all. Text positions at keys and values, image positions elsewhere.
        steps: the part of the denoising schedule, as fractions from 0 to 1.

    Raises:
        InvalidInput: no neuron, a fill of a wrong size, a number that is not finite, an unknown `rows`, or `steps` out of order.
    """

    kind: ClassVar[str] = "neuron-mask"
    header_type: ClassVar[type] = NeuronMaskHeader

    neurons: Neurons
    fill: float | Mapping[str, Float[Tensor, "neuron"]] = field(default=0.0, repr=False)
    strength: float = 1.0
    rows: Rows = "conditional"
    tokens: tuple[int, ...] | None = None
    steps: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        instance("what the mask changes", self.neurons, Neurons, "scores.top(50)")
        if not self.neurons:
            raise InvalidInput("the mask has no neuron; choose at least one, such as scores.top(50)")
        choose("rows", self.rows, ("conditional", "all"))
        check_schedule_part(self.steps)
        finite("strength", self.strength)
        object.__setattr__(self, "tokens", _positions(self.tokens))
        object.__setattr__(self, "fill", {path: self._chosen_fill(path) for path in self.neurons})
        object.__setattr__(self, "neurons", self.neurons.in_order())  # as the fill is now

    @property
    def paths(self) -> Collection[str]:
        """See `Intervention`."""
        return self.neurons.keys()

    @property
    def values(self) -> Mapping[str, Float[Tensor, "neuron"]]:
        """The fill of the chosen neurons, by path."""
        return cast("Mapping[str, Tensor]", self.fill)

    def summary(self) -> Summary:
        """See `Shown`: the masked neurons of each site, and what the mask does to them."""
        of = f" for {concept!r}" if (concept := self.neurons.provenance.concept) else ""
        limits = [f"strength {self.strength:g}", f"{self.rows} rows", f"steps {self.steps[0]:g} to {self.steps[1]:g}"]
        limits += [] if self.tokens is None else [f"tokens {', '.join(map(str, self.tokens))}"]
        counts = f"{counted(self.neurons.count, 'neuron')} in {counted(len(self.neurons), 'site')}"
        return replace(self.neurons.summary(), verdict=f"NeuronMask{of}: {counts}; {', '.join(limits)}")

    def on_output(self, activation: Float[Tensor, "row *token neuron"], call: Call) -> Float[Tensor, "row *token neuron"]:
        """See `Intervention`."""
        if not call.within(self.steps):
            return activation
        chosen = list(self.neurons[call.site.path])
        edited = activation.clone()
        rows = edited[call.rows(self.rows, len(edited))]
        place = (..., chosen) if self.tokens is None else (slice(None), [[token] for token in self.tokens], chosen)
        rows[place] = rows[place].lerp(self.values[call.site.path].to(activation), self.strength)
        return edited

    @property
    def made_on(self) -> str:
        """See `Intervention`."""
        return self.neurons.provenance.model

    def check(self, spec: ModelSpec) -> None:
        """Raises InvalidInput for a mask of another family, UnknownSite for sites that the model lacks or that have another width."""
        family = self.neurons.provenance.family
        if family and family != spec.family:
            raise InvalidInput(
                f"the mask was made for the family {family}, and this model is of {spec.family}; record and rank on this model"
            )
        known = {site.path: site.width for site in spec.sites}
        if all(path not in known for path in self.paths):
            spec.sites.at(self.paths)
        differing = [
            f"{path} ({counted(width, 'neuron')} in the mask, {known.get(path, 'none')} in the model)"
            for path, width in self.neurons.widths.items()
            if known.get(path) != width
        ]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UnknownSite(
                f"the mask was made for another model; {len(differing)} of its sites differ: {', '.join(differing[:3])}{more}"
            )

        if self.tokens:
            self._check_tokens(self.tokens, spec.sites.at(self.paths), spec.token_count)
            if spec.tokens_beside and min(self.tokens) < 0 and spec.sites.at(self.paths).where(text_only=True):
                raise InvalidInput(
                    f"the mask's tokens {self.tokens} are counted from behind, where no token of the prompt is; count them from 0"
                )
            if wordless := spec.wordless & set(self.paths):
                raise InvalidInput(
                    f"{min(wordless)} has no position for each token; make the mask without tokens, or leave its neurons out"
                )

    def _check_tokens(self, tokens: tuple[int, ...], sites: Sites, length: int | None) -> None:
        if pooled := sites.where(role="pooled"):
            raise InvalidInput(f"{pooled[0].path} has no tokens; make the mask without tokens, or leave its neurons out")
        if sites.where(text_only=True) and length is None:
            raise InvalidInput(
                "the tokenizers of this pipeline split text differently, so positions mean two things; make the mask without"
            )
        if sites.where(text_only=True) and length is not None and not -length <= min(tokens) <= max(tokens) < length:
            raise InvalidInput(f"the mask's tokens {tokens} are not all there; the model's prompts have {length}")

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`: for each site the indices and the fill of the chosen neurons."""
        indices, header = self.neurons.to_parts()
        tensors = {f"indices:{path}": tensor for path, tensor in indices.items()}
        tensors |= {f"fill:{path}": tensor for path, tensor in self.values.items()}
        options = {"strength": self.strength, "rows": self.rows, "tokens": self.tokens, "steps": self.steps}
        return tensors, header | options

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: NeuronMaskHeader) -> Self:
        """See `Artifact`."""
        neurons = Neurons.from_parts(tensors, header, prefix="indices:")
        fill = {path: take(tensors, f"fill:{path}", torch.float32) for path in neurons}
        for path, values in fill.items():
            if values.shape != (len(neurons[path]),):
                raise InvalidInput(f"the fill of {path} has shape {tuple(values.shape)}; it has {counted(len(neurons[path]), 'neuron')}")
        return cls(neurons, fill, header.strength, header.rows, header.tokens, header.steps)

    def _chosen_fill(self, path: str) -> Float[Tensor, "neuron"]:
        chosen, width = self.neurons[path], self.neurons.widths[path]
        if not isinstance(self.fill, Mapping):
            return torch.full((len(chosen),), _single(finite("fill", self.fill)))
        if path not in self.fill:
            raise InvalidInput(f"the fill has no values for {path}; it has {', '.join(list(self.fill)[:3]) or 'none'}")
        values = instance(f"the fill of {path}", self.fill[path], Tensor, 'recording.mean("absent")')
        if values.shape not in {(width,), (len(chosen),)}:
            raise InvalidInput(
                f"the fill of {path} has shape {tuple(values.shape)}; give [{width}] or, for the chosen neurons, [{len(chosen)}]"
            )
        places = {index: place for place, index in enumerate(self.neurons.as_given(path))}
        values = values[list(chosen)] if values.shape == (width,) else values[[places[each] for each in chosen]]
        values = values.to(torch.float32, copy=True)
        if not torch.isfinite(values).all():
            raise InvalidInput(f"the fill of {path} holds NaN or infinity; record again in a wider number format")
        return values


def _single(fill: float) -> float:
    """A fill that float32 can hold."""
    if abs(fill) > torch.finfo(torch.float32).max:
        raise InvalidInput(f"fill={fill} is not allowed; give a number of size at most {torch.finfo(torch.float32).max:.3g}")
    return fill


def _positions(tokens: Any) -> tuple[int, ...] | None:
    if tokens is None:
        return None
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise InvalidInput(f"tokens={tokens!r} are no positions; give whole numbers, such as (1, 2), or None for all")
    given = tuple(whole("a token", each, least=-(2**31), most=2**31) for each in tokens)
    if not given:
        raise InvalidInput("the mask has no token; give at least one position, or None for all")
    return given
