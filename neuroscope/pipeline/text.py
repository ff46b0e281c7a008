"""How a pipeline encodes its prompts, and what text-side sites read of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from neuroscope.core import checks, tokens
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, UnsupportedModel, counted
from neuroscope.core.sites import Site
from neuroscope.pipeline.families import Family, WithLength, text_options, uncompiled, without_texts
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
        family.prepare(pipe)

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
        if self._family.tokenizers_apart:
            return self._family.words(self._pipe, first)
        if any(each.model_max_length != first.model_max_length or each.get_vocab() != first.get_vocab() for each in every[1:]):
            raise UnsupportedModel(f"the tokenizers of {type(self._pipe).__name__} split text differently, so positions mean two things")
        return self._family.words(self._pipe, first)

    @cached_property
    def tokenizers(self) -> list[Any]:
        """The tokenizers whose tokens of a prompt lie one behind the other; most pipelines have one, or several that agree."""
        if not self._family.tokenizers_apart:
            return [self.tokenizer]
        every = [part for name in self._family.tokenizers if (part := getattr(self._pipe, name, None)) is not None]
        return [self._family.words(self._pipe, each) for each in every]

    @cached_property
    def token_count(self) -> int | None:
        """The tokens of a prompt; None where the pipeline has no tokenizer, or several that do not agree."""
        try:
            return sum(int(each.model_max_length) for each in self.tokenizers)
        except UnsupportedModel:
            return None

    def as_read(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as the pipeline gives them to its tokenizer: an embedding of several vectors has a token for each of them.

        Textual inversion adds the tokens "<name>", "<name>_1" and so on to the tokenizer; users write the first.
        """
        if not any(name.endswith("_1") for name in getattr(self.tokenizer, "added_tokens_encoder", ())):
            return list(prompts)
        return list(TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), self.tokenizer))

    def select_tokens(self, prompts: Sequence[str], token: tokens.Token, subject: str | None = None) -> np.ndarray:
        """Which positions of each prompt are chosen, as booleans [prompt, token]; see `tokens.select_tokens`."""
        read, sought = self.as_read(prompts), self.as_read([subject])[0] if subject else None
        return np.concatenate([tokens.select_tokens(each, read, token, sought) for each in self.tokenizers], axis=1)

    def kinds_of_tokens(self, prompts: Sequence[str], subject: str) -> np.ndarray:
        """What each position of each prompt is, as words [prompt, token]; see `tokens.kinds_of_tokens`."""
        read, sought = self.as_read(prompts), self.as_read([subject])[0]
        return np.concatenate([tokens.kinds_of_tokens(each, read, sought) for each in self.tokenizers], axis=1)

    def kinds_in_encoder(self, number: int, prompt: str, subject: str, length: int) -> np.ndarray:
        """What each position is that a text encoder reads of a prompt, as words [token]; "" where it is none of the prompt's.

        Args:
            number: of the encoder, in the order of `encoders`.
            prompt: the prompt.
            subject: see `tokens.kinds_of_tokens`.
            length: how many positions the encoder reads.
        """
        if self._family.joint or self._family.tokenizers_apart:
            name = [name for name in self._family.text_encoders if getattr(self._pipe, name, None) is not None][number]
            own = WithLength(getattr(self._pipe, name.replace("text_encoder", "tokenizer")), length)
            found: np.ndarray = tokens.kinds_of_tokens(own, self.as_read([prompt]), self.as_read([subject])[0])[0]
            return found
        kinds = self.kinds_of_tokens([prompt], subject)[0]
        # behind the first position may stand an instruction, which is not kept; and some encoders are given no padding
        between = np.full(max(0, length - len(kinds)), "", dtype=kinds.dtype)
        return kinds[:length] if length <= len(kinds) else np.concatenate([kinds[:1], between, kinds[1:]])

    def align(self, pairs: Sequence[tuple[str, str]], subject: str, kinds: Collection[str]) -> list[list[tuple[int, int]]]:
        """Which positions of each pair's prompts correspond to each other; see `tokens.align`."""
        read = [(first, second) for first, second in map(self.as_read, pairs)]
        found: list[list[tuple[int, int]]] = [[] for _ in pairs]
        before = 0
        for tokenizer in self.tokenizers:
            aligned = tokens.align(tokenizer, read, self.as_read([subject])[0], kinds)
            found = [[*each, *((one + before, other + before) for one, other in more)] for each, more in zip(found, aligned, strict=True)]
            before += int(tokenizer.model_max_length)
        return found

    def conditions(self, prompts: Sequence[str], batch_size: int = 64, **options: Any) -> Conditions:
        """What the pipeline's own text encoders make of the prompts.

        Warns of prompts that are longer than the encoders read, naming the lost words.

        Args:
            prompts: at least one.
            batch_size: prompts at a time.
            **options: options of the pipeline's call by which it encodes: `clip_skip` (how many of the last layers of a CLIP text encoder
                to leave out), or `clean_caption`. What is left out has the call's own default.

        Raises:
            InvalidInput: no prompt, or an option that the pipeline does not have.
        """
        prompts = list(checks.strings("prompts", prompts))
        if not prompts:
            raise InvalidInput("there is no prompt to encode; give at least one")
        checks.whole("batch_size", batch_size)
        given = {name: value for name, value in options.items() if value is not None} | text_options(self._pipe, options)
        if "clip_skip" in given:
            checks.whole("clip_skip", given["clip_skip"], least=0)
        for tokenizer in self.tokenizers:
            tokens.warn_of_lost_words(tokenizer, self.as_read(prompts))
        batch_size = 1 if self._family.encodes_alone else batch_size
        batches = (prompts[first : first + batch_size] for first in range(0, len(prompts), batch_size))
        return Conditions.of([self._encode(batch, given) for batch in batches])

    def negative(self, prompt: str | None = None) -> Conditions:
        """What the unconditional rows are given: a negative prompt's conditions, or what the pipeline takes without one."""
        return self._encode([""], {}, negative=None if prompt is None else [prompt], unconditional=True)

    def on_either_side(self, prompts: Sequence[str]) -> Conditions:
        """The conditions of prompts, and those that they have as negative prompts where these are encoded in another way."""
        negatives = [] if self._family.negatives_alike else [self.negative(prompt) for prompt in prompts]
        return Conditions.of([self.conditions(prompts), *negatives])

    def encode(self, prompts: Sequence[str], batch_size: int = 64, **options: Any) -> Float[Tensor, "prompt token channel"]:
        """The contexts that cross-attention reads of the prompts: `conditions` without pooled text."""
        return self.conditions(prompts, batch_size, **options).context

    def options(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the options of the pipeline's call by which it encodes, as `conditions` takes them.

        Raises:
            InvalidInput: prompts of another length than the model's, whose tokens would not be those of other prompts.
        """
        length = generation.get("max_sequence_length")
        if length not in (None, self.token_count):
            own = f"{counted(self.token_count, 'token')} that prompts have" if self.token_count else "length of prompts"
            raise InvalidInput(f"max_sequence_length={length} is not the {own} here; leave it out")
        return text_options(self._pipe, generation)

    def arguments(self, conditions: Conditions, negative: Conditions) -> dict[str, Tensor | None]:
        """The conditions of conditional and unconditional rows as the pipeline's call takes them; few-step models have the former alone."""
        known = inspect.signature(type(self._pipe).__call__).parameters
        takes_all = any(each.kind is each.VAR_KEYWORD for each in known.values())
        given = self._family.call_arguments(uncompiled(self._denoiser), conditions, negative)
        return without_texts(self._pipe) | {name: value for name, value in given.items() if takes_all or name in known}

    def positions(self, site: Site, chosen: Bool[Tensor, "*prompt token"], count: int) -> Bool[Tensor, "*prompt position"]:
        """Which of so many positions of what a text-side site reads are the chosen tokens; all, where they are no tokens of the prompt."""
        wordless = self._family.is_wordless(uncompiled(self._denoiser), site.module)
        if wordless:
            return chosen.new_ones((*chosen.shape[:-1], count))
        return functional.pad(chosen, (0, count - chosen.shape[-1]))  # tokens behind the prompt's are none of its words

    def attention_arguments(self, conditions: Conditions) -> dict[str, Tensor]:
        """What a layer's attention is given of prompts by name: the bias of its scores, where the model masks tokens."""
        mask = self._family.mask
        return {} if mask is None else {mask.argument: mask.bias(conditions.of_tokens)}

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
        self, prompts: list[str], options: Mapping[str, Any], *, negative: list[str] | None = None, unconditional: bool = False
    ) -> Conditions:
        return self._family.encode(self._pipe, prompts, negative, unconditional, options)
