"""Letting chosen keys and values (or the pooled text) read another prompt, LOCOGEN's patch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Self, get_args

import einops
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.artifacts import FLOATS, Provenance, take
from neuroscope.core.checks import finite, finite_tensor, instance, strings
from neuroscope.core.conditions import Conditions, Rows
from neuroscope.core.errors import InvalidInput, UnknownSite, choose, counted
from neuroscope.core.intervention import (
    Call,
    Definition,
    Encoder,
    Intervention,
    ModelSpec,
    Taking,
    check_schedule_part,
    counted_sites,
)
from neuroscope.core.results.scores import Neurons, NeuronsHeader
from neuroscope.core.sharing.summary import Summary
from neuroscope.core.sites import TEXT_ROLES, Site, Sites

#: The roles whose text a layer takes.
_LAYER = ("key", "value")
#: What masks may be stored as, beside floating-point numbers.
_COUNTS = (torch.bool, torch.int32, torch.int64)


@dataclass(frozen=True)
class ContextSwapHeader:
    """What a saved swap's header says beside its tensors."""

    paths: tuple[str, ...]
    rows: Rows
    steps: tuple[float, float]
    strength: float
    provenance: Provenance
    neurons: NeuronsHeader | None
    definition: Definition = "edge"


@dataclass(frozen=True, eq=False)
class ContextSwap(Intervention):
    """Gives some key, value or pooled sites what another prompt says (Basu et al. 2024, LOCOGEN).

    Each site's own module is given what it would read of that prompt, projections and normalisation included. The pooled
    text path keeps the run's own prompt unless its site is among the paths.

    Where attention is told by a mask which tokens it sees (PixArt), a layer whose key and value both read the other prompt is given that
    prompt's mask as well: with a strength between 0 and 1, tokens that one of the prompts lacks count in part. A layer of which only the
    key, only the value or only some neurons read the other prompt keeps the run's own mask.

    Attributes:
        paths: the sites that read the other prompt.
        context: [prompt, token, channel], from `graph.text.encode`; one for all rows, or one for each prompt of the batch.
        pooled: [prompt, summary], from `graph.text.conditions`, for a pooled site that does not read the tokens.
        neurons: only these neurons read it; by default all neurons of the sites.
        rows: "conditional" (the rows that carry the prompt) or "all".
        steps: the part of the denoising schedule, as fractions from 0 to 1.
        provenance: the model.
        strength: how far between the run's own prompt and the other: 0 leaves the model unchanged, 1 is the other prompt.
        mask: [prompt, token], from `graph.text.conditions`, for a model whose attention is given one.
        generated: [prompt, state, channel], from `graph.text.conditions`, for layers that read what a language model wrote.
        definition: what a layer takes of the other prompt where blocks rewrite the text (SD3, FLUX): "edge", what the image reads of its
            text, while the block's own text stays the run's; or "stream", the text's queries, keys and values, so that the block's text
            changes as well (Zarei et al. 2025, as published).

    Where blocks rewrite the text, a layer's text of the other prompt comes from a row that reads that prompt at the same step: by default
    one that is added to each call of the denoiser, with the image's own latents, which costs as much as an image; see
    `HookGraph.apply_each` for taking it from another image of the batch. A swap of the first block alone costs nothing more than a run.

    Raises:
        InvalidInput: no site, a context of another shape, a number that is not finite, neurons of other sites, or `steps` out of order.
    """

    kind: ClassVar[str] = "context-swap"
    header_type: ClassVar[type] = ContextSwapHeader

    paths: Collection[str]
    context: Float[Tensor, "prompt token channel"] = field(repr=False)
    neurons: Neurons | None = None
    rows: Rows = "conditional"
    steps: tuple[float, float] = (0.0, 1.0)
    provenance: Provenance = Provenance()
    pooled: Float[Tensor, "prompt summary"] | None = field(default=None, repr=False)
    strength: float = 1.0
    mask: Shaped[Tensor, "prompt token"] | None = field(default=None, repr=False)
    generated: Float[Tensor, "prompt state other"] | None = field(default=None, repr=False)
    definition: Definition = "edge"

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", strings("the swap's paths", self.paths))
        if not self.paths:
            raise InvalidInput("the swap has no site; choose keys and values, such as graph.sites.where(layer=8, text_only=True)")
        instance("the swap's context", self.context, Tensor, "graph.text.encode(prompts)")
        if self.context.ndim != 3:
            raise InvalidInput(
                f"the swap's context has shape {tuple(self.context.shape)}; give [prompt, token, channel], from graph.text.encode"
            )
        finite_tensor("the swap's context", self.context, "prompt", "token", "channel")
        if self.pooled is not None:
            finite_tensor("the swap's pooled", self.pooled, "prompt", "summary")
        if self.generated is not None:
            finite_tensor("the swap's generated", self.generated, "prompt", "state", "channel")
        if self.mask is not None:
            _check_mask(self.mask, self.context)
        finite("strength", self.strength)
        instance("neurons", self.neurons, (Neurons, type(None)), "scores.top(50)")
        instance("provenance", self.provenance, Provenance, "neuroscope.Provenance()")
        if self.neurons is not None and set(self.neurons) - set(self.paths):
            raise InvalidInput(f"the swap's neurons are of {sorted(set(self.neurons) - set(self.paths))[0]}, which is not among its sites")
        choose("rows", self.rows, ("conditional", "all"))
        choose("definition", self.definition, get_args(Definition))
        check_schedule_part(self.steps)

    def __repr__(self) -> str:
        said = f"prompts={len(self.context)}, strength={self.strength}, rows={self.rows!r}, steps={self.steps}"
        return f"ContextSwap({self.neurons or counted_sites(self.paths)}, {said})"

    @classmethod
    def of(cls, graph: Encoder, sites: Iterable[Site], prompts: str | Sequence[str], **options: Any) -> Self:
        """A swap to prompts, encoded by the model's own text encoder.

        Args:
            graph: the model.
            sites: which sites read the prompts, one or several.
            prompts: one for all images, or one for each.
            **options: further fields of the class.

        Raises:
            InvalidInput: no site, no prompt, or an option that the class does not have.
        """
        given = checks.several("sites", sites, Site, "graph.sites.where(layer=8, text_only=True)")
        free = [each.name for each in fields(cls) if each.name not in ("paths", "context", "pooled", "mask", "generated", "provenance")]
        for name in options:
            choose("option", name, free)
        conditions = graph.text.conditions([prompts] if isinstance(prompts, str) else prompts)
        return cls.reading(conditions, [site.path for site in given], provenance=Provenance(graph.spec.family, graph.model), **options)

    @classmethod
    def reading(cls, conditions: Conditions, paths: Collection[str], **options: Any) -> Self:
        """A swap to prompts of which the conditions are known, such as `graph.text.conditions` gives them.

        Args:
            conditions: of the prompts.
            paths: the sites that read the prompts.
            **options: further fields of the class.
        """
        options |= {"generated": conditions.generated}
        return cls(paths, conditions.context, pooled=conditions.pooled, mask=conditions.mask, **options)

    @cached_property
    def conditions(self) -> Conditions:
        """What the other prompts say."""
        return Conditions(self.context, self.pooled, self.mask, self.generated)

    @cached_property
    def taking(self) -> Taking:
        """See `Intervention`."""
        return Taking(self.conditions, self.definition, self.rows, self.steps)

    def summary(self) -> Summary:
        """See `Shown`: the sites that read the other prompts."""
        import pandas as pd

        return Summary.of(repr(self), pd.DataFrame({"path": list(self.paths)}))

    @property
    def changes_input(self) -> bool:
        """See `Intervention`: whole sites read the other prompt as their input, chosen neurons are computed beside it."""
        return self.neurons is None

    def on_input(self, context: Float[Tensor, "row *token channel"], call: Call) -> Float[Tensor, "row *token channel"]:
        """See `Intervention`."""
        rows = call.rows(self.rows, len(context))
        if not call.within(self.steps) or rows.start == rows.stop:
            return context
        edited = context.clone()
        other = self._for_rows(call.read(self.conditions, len(context)), rows.stop - rows.start, len(context) // call.parts)
        place = (rows, *_tokens(edited, call.beside), slice(other.shape[-1]))
        _expect_tokens(edited[place], other)
        edited[place] = edited[place].lerp(other.to(context), self.strength)
        return edited

    def on_output(self, activation: Float[Tensor, "row *token neuron"], call: Call) -> Float[Tensor, "row *token neuron"]:
        """See `Intervention`."""
        chosen = list(self.neurons.get(call.site.path, ())) if self.neurons is not None else []
        rows = call.rows(self.rows, len(activation))
        if not call.within(self.steps) or rows.start == rows.stop:
            return activation
        edited = activation.clone()
        other = call.project(call.read(self.conditions, len(activation)))
        own = edited[(rows, *_tokens(edited, call.beside))]  # a view
        _expect_tokens(own, other)
        others = self._for_rows(other, rows.stop - rows.start, len(activation) // call.parts)[..., chosen]
        own[..., chosen] = own[..., chosen].lerp(others.to(activation), self.strength)
        return edited

    def masked(self, sites: Sites) -> Collection[str]:
        """See `Intervention`: the keys of the layers that read the other prompt as a whole."""
        chosen = sites.at(self.paths) if self.neurons is None else Sites(())
        whole = {site.layer for site in chosen.where(role="value")}
        return [site.path for site in chosen.where(role="key") if site.layer in whole]

    def on_mask(self, bias: Float[Tensor, "row query token"], call: Call) -> Float[Tensor, "row query token"]:
        """See `Intervention`."""
        rows = call.rows(self.rows, len(bias))
        if not call.within(self.steps) or rows.start == rows.stop:
            return bias
        edited = bias.clone()
        _expect_tokens(bias.mT, self.context)
        other = self._for_rows(call.read(self.conditions, len(bias)), rows.stop - rows.start, len(bias) // call.parts)
        edited[rows] = _between(bias[rows], other.to(bias), self.strength)
        return edited

    @property
    def made_on(self) -> str:
        """See `Intervention`."""
        return self.provenance.model

    def check(self, spec: ModelSpec) -> None:
        """Raises UnknownSite for sites that the model lacks, InvalidInput for sites that do not read the text alone."""
        for site in spec.sites.at(self.paths):
            if site.role not in TEXT_ROLES:
                raise InvalidInput(f"{site.path} does not read the prompt alone; swap the context of keys and values")
            width = site.width if self.neurons is None else self.neurons.widths.get(site.path, site.width)
            if width != site.width:
                raise UnknownSite(
                    f"the swap was made for another model: {site.path} has {counted(width, 'neuron')} in it and {site.width} in the model"
                )
        given, model = tuple(self.context.shape[1:]), (spec.token_count or self.context.shape[1], spec.context_channels)
        if given[1] != model[1] or given[0] % model[0]:  # prompts of several chunks have several times the tokens of one
            raise InvalidInput(f"the swap's context has {given} tokens and channels, and the model's {model}; encode it anew")
        for site in spec.sites.at(self.paths).where(role="pooled"):
            if self.neurons is not None:
                raise InvalidInput(f"{site.path} can be swapped as a whole only; leave out its neurons")
            if spec.has_summary and self.pooled is None:
                raise InvalidInput("this change holds no pooled text, which the pooled path reads; make it with graph.text.conditions")
        if spec.has_summary and self.pooled is None and spec.rewritten & set(self.paths):
            raise InvalidInput("this change holds no pooled text, which every block reads; make it with graph.text.conditions")
        self._check_definition(spec)
        if self.generated is None and (unread := spec.wordless & set(self.paths)):
            raise InvalidInput(f"this change holds nothing generated, which {min(unread)} reads; make it with graph.text.conditions")
        if spec.has_mask and self.mask is None and self.masked(spec.sites):
            raise InvalidInput("this change holds no mask, which the attention of its layers reads; make it with graph.text.conditions")

    def _check_definition(self, spec: ModelSpec) -> None:
        """Raises InvalidInput for a definition that would be ignored, or that these sites do not have."""
        if self.definition == "edge":
            return
        given = spec.sites.at(self.paths)
        rewritten = [site for site in given if site.path in spec.rewritten]
        if not rewritten:
            raise InvalidInput('definition="stream" would be ignored: no block of this model rewrites the text; leave it out')
        missing = [site for site in rewritten if len([each for each in rewritten if each.layer == site.layer]) < len(_LAYER)]
        if missing or self.neurons is not None:
            where = f"layer {missing[0].layer} has its {missing[0].role} alone" if missing else "neurons are given"
            raise InvalidInput(f'definition="stream" takes the text of whole layers, keys and values, and {where}; use definition="edge"')

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`."""
        tensors = {"context": self.context} | ({} if self.pooled is None else {"pooled": self.pooled})
        tensors |= {} if self.mask is None else {"mask": self.mask}
        tensors |= {} if self.generated is None else {"generated": self.generated}
        header: dict[str, Any] = {"paths": list(self.paths), "rows": self.rows, "steps": self.steps, "strength": self.strength}
        header |= {"definition": self.definition}
        header |= {"provenance": asdict(self.provenance), "neurons": None}
        if self.neurons is not None:
            indices, header["neurons"] = self.neurons.to_parts()
            tensors |= {f"indices:{path}": tensor for path, tensor in indices.items()}
        return tensors, header

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: ContextSwapHeader) -> Self:
        """See `Artifact`."""
        context = take(tensors, "context", *FLOATS)
        pooled = take(tensors, "pooled", *FLOATS) if "pooled" in tensors else None
        mask = take(tensors, "mask", *FLOATS, *_COUNTS) if "mask" in tensors else None
        written = take(tensors, "generated", *FLOATS) if "generated" in tensors else None
        neurons = None if header.neurons is None else Neurons.from_parts(tensors, header.neurons, prefix="indices:")
        given = (header.rows, header.steps, header.provenance, pooled, header.strength, mask, written, header.definition)
        return cls(header.paths, context, neurons, *given)

    def _for_rows(self, others: Tensor, rows: int, images: int) -> Tensor:
        """What each of the changed rows takes of the prompts'; several images of one prompt lie side by side, in each part of the batch.

        Args:
            others: one for each prompt of the swap.
            rows: how many rows are changed.
            images: how many images the batch has.
        """
        if len(others) == 1:  # a view, where a copy would be made at every site and step
            return others.expand(rows, *others.shape[1:])
        if images % len(others):
            raise InvalidInput(
                f"the swap holds contexts of {counted(len(self.context), 'prompt')}, which {counted(images, 'row')} cannot be shared "
                "among; give one or as many as prompts"
            )
        return einops.repeat(others, "prompt ... -> (part prompt image) ...", part=rows // images, image=images // len(others))


def _between(own: Float[Tensor, "row query token"], other: Float[Tensor, "row query token"], strength: float) -> Tensor:
    """The bias with which each token counts so far between its weights under two biases, exactly either at 0 and 1."""
    if strength == 1:
        return other
    weights = own.exp().lerp(other.exp(), strength).clamp_min(0)
    result: Tensor = weights.log().maximum(own.minimum(other))
    return result


def _check_mask(mask: Any, context: Tensor) -> None:
    """Raises InvalidInput for a mask of other prompts or tokens than the context's."""
    instance("the swap's mask", mask, Tensor, "graph.text.conditions(prompts).mask")
    if mask.shape != context.shape[:2]:
        raise InvalidInput(
            f"the swap's mask has shape {tuple(mask.shape)}, and its context {tuple(context.shape)}; give [prompt, token], from "
            "graph.text.conditions"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise InvalidInput("the swap's mask holds other numbers than 0 and 1; take it from graph.text.conditions")


def _tokens(given: Tensor, beside: int) -> tuple[slice, ...]:
    """The place of the prompt's tokens in what a site reads, without those behind them; pooled text has none."""
    return (slice(given.shape[1] - beside),) if given.ndim == 3 else ()


def _expect_tokens(given: Tensor, other: Tensor) -> None:
    """Raises InvalidInput where a run's context has another length than the swap's; pooled text has none."""
    if given.ndim == 3 and given.shape[1] != other.shape[1]:
        raise InvalidInput(
            f"the swap's context has {counted(other.shape[1], 'token')}, and this run's {given.shape[1]}; make the swap of contexts of "
            "as many chunks as the run's prompt_embeds"
        )
