"""How a pipeline encodes its prompts, and what text-side sites read of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, UnsupportedModel
from neuroscope.core.sites import Site
from neuroscope.core.tokens import warn_of_lost_words
from neuroscope.pipeline.families import Family, uncompiled
from neuroscope.pipeline.weights import resting_device

#: Where the denoiser computes, and in which number format.
Placement = tuple[torch.device | None, torch.dtype]


class PromptEncoder:
    """The text side of a pipeline: `graph.text`.

    Args:
        pipe: the pipeline.
        family: of its denoiser.
    """

    def __init__(self, pipe: Any, family: Family) -> None:
        self._pipe = pipe
        self._family = family
        self._denoiser: Any = getattr(pipe, family.component)

    def __repr__(self) -> str:
        return f"PromptEncoder({type(self._pipe).__name__}: {', '.join(type(each).__name__ for each in self.encoders)})"

    @property
    def encoders(self) -> list[Any]:
        """The pipeline's text encoders, whose outputs lie side by side in the context."""
        return [part for name in self._family.text_encoders if (part := getattr(self._pipe, name, None)) is not None]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, as the pipeline calls it.

        Raises:
            UnsupportedModel: the pipeline has none, or several that split text differently, so that a position means two things.
        """
        every = [part for name in self._family.tokenizers if (part := getattr(self._pipe, name, None)) is not None]
        if not every:
            raise UnsupportedModel(f"{type(self._pipe).__name__} has no tokenizer; give it the one of its text encoder")
        first = every[0]
        if any(each.model_max_length != first.model_max_length or each.get_vocab() != first.get_vocab() for each in every[1:]):
            raise UnsupportedModel(f"the tokenizers of {type(self._pipe).__name__} split text differently, so positions mean two things")
        return self._family.words(first)

    @cached_property
    def token_count(self) -> int | None:
        """The tokens of a prompt; None where the pipeline has no tokenizer, or several that do not agree."""
        try:
            return int(self.tokenizer.model_max_length)
        except UnsupportedModel:
            return None

    def conditions(self, prompts: Sequence[str], batch_size: int = 64, clip_skip: int | None = None) -> Conditions:
        """What the pipeline's own text encoders make of the prompts.

        Warns of prompts that are longer than the encoders read, naming the lost words.

        Args:
            prompts: at least one.
            batch_size: prompts at a time.
            clip_skip: how many of the last layers of a CLIP text encoder to leave out.

        Raises:
            InvalidInput: no prompt, or an option that the pipeline does not have.
        """
        prompts = list(checks.strings("prompts", prompts))
        if not prompts:
            raise InvalidInput("there is no prompt to encode; give at least one")
        checks.whole("batch_size", batch_size)
        if clip_skip is not None:
            checks.whole("clip_skip", clip_skip, least=0)
        warn_of_lost_words(self.tokenizer, prompts)
        batches = (prompts[first : first + batch_size] for first in range(0, len(prompts), batch_size))
        return Conditions.of([self._encode(batch, clip_skip=clip_skip) for batch in batches])

    def negative(self, prompt: str | None = None) -> Conditions:
        """What the unconditional rows are given: a negative prompt's conditions, or what the pipeline takes without one."""
        return self._encode([""], negative=None if prompt is None else [prompt], unconditional=True)

    def encode(self, prompts: Sequence[str], batch_size: int = 64, clip_skip: int | None = None) -> Float[Tensor, "prompt token channel"]:
        """The contexts that cross-attention reads of the prompts: `conditions` without pooled text."""
        return self.conditions(prompts, batch_size, clip_skip).context

    def arguments(self, conditions: Conditions, negative: Conditions) -> dict[str, Tensor]:
        """The conditions of conditional and unconditional rows as the pipeline's call takes them."""
        return self._family.call_arguments(conditions, negative)

    def read(self, site: Site, conditions: Conditions, batch: int | None = None) -> Float[Tensor, "prompt *token channel"]:
        """What a text-side site's module reads of prompts; of modules that read more, these are the first channels.

        Args:
            site: it is `text_only`.
            conditions: of the prompts.
            batch: the rows of the batch in which the denoiser would read them: products of matrices of other sizes round otherwise.
        """
        return self.read_at(site, self._placement, conditions, batch)

    def read_each(self, sites: Iterable[Site], conditions: Conditions) -> Iterator[tuple[Site, Tensor]]:
        """Each of these sites with what its module reads, as `read` gives it."""
        placement = functools.cache(self._placement)
        return ((site, self.read_at(site, placement, conditions)) for site in sites)

    def read_at(self, site: Site, placement: Callable[[], Placement], conditions: Conditions, batch: int | None = None) -> Tensor:
        """As `read`, where it is known already where the denoiser computes."""
        given = conditions.to(*placement())
        repeated = Conditions.of([given] * max(1, (batch or 0) // len(given)))
        with torch.no_grad():
            return self._family.read(uncompiled(self._denoiser), site.module, repeated)[: len(given)]

    def _placement(self) -> Placement:
        """Where the denoiser's weights rest, as its modules are called alone; asking the pipeline takes a walk through all modules."""
        denoiser = uncompiled(self._denoiser)
        return resting_device(denoiser) or self._pipe._execution_device, denoiser.dtype

    @torch.no_grad()
    def _encode(
        self, prompts: list[str], *, clip_skip: int | None = None, negative: list[str] | None = None, unconditional: bool = False
    ) -> Conditions:
        return self._family.encode(self._pipe, prompts, negative, clip_skip, unconditional)
