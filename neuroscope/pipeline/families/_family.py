"""What a family is: data about one denoiser architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL.Image import Image
from torch import Tensor

from neuroscope.core.conditions import Conditions, Part
from neuroscope.core.errors import UnsupportedModel
from neuroscope.core.sites import Role
from neuroscope.pipeline.families.attentions import AttentionMask, FirstText, JointAttention
from neuroscope.pipeline.families.decoding import decode, latent_size
from neuroscope.pipeline.families.encoding import Encoded, encode, expected_parts, split_encoded
from neuroscope.pipeline.families.pipelines import check_modes, refuse_pipeline

_ARGUMENTS = {"latents": "sample", "timestep": "timestep", "context": "encoder_hidden_states"}


@dataclass(frozen=True)
class SitePattern:
    """Which module carries a role: `module` is a regular expression over torch module paths.

    What stands before it is the transformer block, which ties the sites of one layer together.

    Attributes:
        before_module: the site is the module's input, not its output.
        text_only: the site depends on the prompt alone.
        reader: the module path (below the block) whose weights read these neurons, for norms of outgoing weights; None
            where the neurons are added to the residual stream.
        reader_rows: the neurons meet the rows of the reader's weight rather than its columns.
        in_layer: the site belongs to a cross-attention layer.
        rewritten: the site reads a text that blocks rewrite.
        within: a regular expression over the paths of the blocks that have it.
    """

    role: Role
    module: str
    before_module: bool = False
    text_only: bool = False
    reader: str | None = None
    reader_rows: bool = False
    in_layer: bool = True
    rewritten: bool = False
    within: str = ".+"

    def block_of(self, module_path: str) -> str | None:
        """The transformer block of a module that carries this role ("" where it is in no layer), else None."""
        found = re.fullmatch(rf"(?P<block>{self.within})\.{self.module}" if self.in_layer else rf"(?P<block>){self.module}", module_path)
        return found["block"] if found else None

    def beside(self, module_path: str, module: str) -> str:
        """The path of a module that belongs to the same block as a module of this role."""
        block = self.block_of(module_path)
        return f"{block}.{module}" if block else module


@dataclass(frozen=True)
class Refusal:
    """A state of a denoiser in which hooks would be silent or wrong: its name, why, what to do, and a test for it.

    `silent` states are looked for at every block, because sites run as often as ever in them.
    """

    name: str
    reason: str
    applies: Callable[[Any], bool]
    silent: bool = False


@dataclass(frozen=True)
class CheckpointNames:
    """How tools that read kohya's LoRA files call a family's published models, and modules that they know by no other name.

    Attributes:
        base: from the denoiser's config, and whether it predicts velocities: the base model as kohya's scripts call it, and its
            architecture as the ModelSpec does.
        modules: by a module's path, what the original checkpoints call it.
    """

    base: Callable[[Any, bool], tuple[str, str]]
    modules: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One denoiser architecture.

    Attributes:
        name: how reprs and saved files call it.
        component: the pipeline's attribute that holds the denoiser.
        denoisers: the class names of such denoisers.
        matches: whether a denoiser of such a class, by its config, is of this family.
        patterns: where the sites are.
        refusals: the states in which a denoiser of the family is refused.
        block_name: the display name of a transformer block's place, from its module path.
        inputs: arguments for one call of the denoiser on latents of a size [height, width], of videos [frame, height, width]; None: the
            smallest that fits.
        components: for each kind of component that causal tracing restores, a regular expression over module paths.
        stages: a regular expression over the paths of the modules that run one after the other and hold all layers; each is given
            all that it reads as arguments, so that rows of a batch may begin to differ from one another at any of them. Matches
            nothing where the denoiser's output has as many rows as it was called with.
        encoded: what the pipeline's `encode_prompt` returns, in order, and what its call calls it.
        negatives_alike: whether a text is encoded alike as a prompt and as a negative prompt.
        tokenizers, text_encoders: the pipeline's attributes that hold them; a pipeline need not have all.
        split: the conditions of prompts and of negative prompts in what `encode_prompt` returns; see `encoding.split_encoded`.
        expected_parts: the order of a batch of so many parts, where contexts do not tell it; see `encoding.expected_parts`.
        decode: the images of final latents of a call with these options; see `decoding.decode`.
        read: what the module of a text-side site reads of prompts, from the denoiser, the module's path and the conditions:
            [prompt, token, channel], or [prompt, channel] for pooled text. Where the module reads more channels, these are
            the first.
        words: a pipeline's tokenizer as the pipeline itself turns prompts into tokens.
        noise: the noise in what the denoiser predicts, which may be followed by channels of another kind.
        arguments: what the denoiser's call calls its latents, timestep and context.
        mask: how the attentions of layers are given the prompt's mask; None where they see all tokens.
        prepares_text: a regular expression over the paths of modules that read the prompt's tokens for all layers that follow.
        checkpoint: how tools that read kohya's LoRA files call its models and modules; None where none of them runs it.
        reads_of: which of several encoders the layer of a module reads, from the denoiser and the module's path: "" where there is
            only one, None where that layer reads no text. A layer's block is named after it, as "down.0.t5".
        wordless: which of these encoders give states that are of no single word.
        encodes_alone: what a prompt says depends on the others with which it is encoded, so that each is encoded alone.
        settle: what a pipeline's encoding returned, as all runs and conditions are to have it, such as at one length.
        prepare: puts a pipeline into the state in which its own calls leave it, so that a run changes no fingerprint.
        tokens_beside: how many tokens behind the prompt's the denoiser is given that say something else, such as a sound's length.
        zeros_by_itself: zeros stand for a missing negative prompt, and the pipeline makes them itself.
        makes: what the pipeline makes of latents; sounds and videos are made by `decode`, since the pipeline gives arrays or frames.
        latent_size: the size of latents, as `inputs` takes it, for images or videos of a height, a width and a number of frames (None:
            the default); see `decoding.latent_size`.
        channels_last: the denoiser's latents are [row, place, channel].
        one_step_a_call: rows that begin midway share no call with other images' steps, as the denoiser computes what it does behind its
            stages for the rows with which a call begins.
        calls: of which parts the calls of one guided step are, in order; empty where one call has all parts.
        encodings: the options of each of the calls of the pipeline's `encode_prompt` with which a run begins; `split` is given what all of
            them returned where there are several.
        tokenizers_apart: a prompt's tokens are those of one tokenizer and, behind them, those of the next.
        context_shape: the tokens and channels of a prompt's context, where they are not those of one argument.
        successors: the pipeline's attributes that may hold further denoisers of the same class, which take over in later steps. A graph
            is of one of them.
        joint: the attentions in which the image reads a text that blocks rewrite.
        first_text: how the first of them reads prompts.
        shared: the arguments of the denoiser's and its stages' calls that all rows share, whatever their size.
        encodes_apart: the pipeline encodes negative prompts by a second call of `encode_prompt`.
        timestep: the scheduler's timestep that a call of the denoiser is given, from the pipeline and what is given.
        edit_reaches: what beside prompts an edit of keys and values moves, as the end of a sentence; "" where it moves nothing else.
        skipped_block: the path of a block that a call leaves out, with {} for its number; "" where calls leave out none.
        called: conditions as the pipeline's call takes them, where encoding returns more, such as padding.
        inside: what holds of a denoiser while blocks are open on it, as a context manager.
        walk: calls a denoiser without weights by the arguments of `inputs`; its own call where that computes no places from numbers.
        recomputes: whether diffusers' gradient checkpointing of such a denoiser computes what it computes without.
        frames: how many rows, side by side, the context and all sites have for each row of the latents that a call is given, [row, ...]:
            the frames of a video that attend to the text one by one.
    """

    name: str
    component: str
    denoisers: tuple[str, ...]
    matches: Callable[[Any], bool]
    patterns: tuple[SitePattern, ...]
    refusals: tuple[Refusal, ...]
    block_name: Callable[[str], str]
    inputs: Callable[[Any, Any], dict[str, Any]]
    components: Mapping[str, re.Pattern[str]]
    stages: re.Pattern[str]
    encoded: tuple[Encoded, ...]
    read: Callable[[Any, str, Conditions], Tensor]
    negatives_alike: bool = True
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2")
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    decode: Callable[[Any, Tensor, Mapping[str, Any]], list[Image]] = decode
    split: Callable[[Sequence[Encoded], Any, Any, Sequence[Any], Mapping[str, Any]], tuple[Conditions, Conditions | None]] = split_encoded
    expected_parts: Callable[[Any, int, bool], tuple[Part, ...]] = expected_parts
    words: Callable[[Any, Any], Any] = lambda _pipe, tokenizer: tokenizer
    noise: Callable[[Any, Tensor], Tensor] = lambda _denoiser, predicted: predicted
    arguments: Mapping[str, str] = field(default_factory=lambda: dict(_ARGUMENTS))
    mask: AttentionMask | None = None
    prepares_text: re.Pattern[str] = re.compile(r"(?!)")
    checkpoint: CheckpointNames | None = None
    reads_of: Callable[[Any, str], str | None] = lambda _denoiser, _path: ""
    wordless: frozenset[str] = frozenset()
    encodes_alone: bool = False
    settle: Callable[[Any, Any], Any] = lambda _pipe, encoded: encoded
    prepare: Callable[[Any], None] = lambda _pipe: None
    tokens_beside: int = 0
    zeros_by_itself: bool = False
    makes: Literal["image", "sound", "video"] = "image"
    latent_size: Callable[..., tuple[int, ...]] = latent_size
    channels_last: bool = False
    one_step_a_call: bool = False
    calls: tuple[Part, ...] = ()
    encodings: tuple[Mapping[str, Any], ...] = ({},)
    tokenizers_apart: bool = False
    context_shape: Callable[[Any], tuple[int, int]] | None = None
    successors: tuple[str, ...] = ()
    joint: tuple[JointAttention, ...] = ()
    first_text: FirstText | None = None
    shared: tuple[str, ...] = ()
    encodes_apart: bool = False
    timestep: Callable[[Any, float], float] = lambda _pipe, given: given
    edit_reaches: str = ""
    skipped_block: str = ""
    called: Callable[[Conditions], Conditions] = lambda conditions: conditions
    inside: Callable[[Any], AbstractContextManager[None]] = lambda _denoiser: nullcontext()
    walk: Callable[[Any, Mapping[str, Any]], Any] = lambda denoiser, given: denoiser(**given)
    recomputes: bool = True
    frames: Callable[[Tensor], int] = lambda _latents: 1

    def pattern(self, role: Role, module: str | None = None) -> SitePattern:
        """The pattern of a role that a module carries; by default the first of that role."""
        return next(each for each in self.patterns if each.role == role and (module is None or each.block_of(module) is not None))

    def joint_of(self, attention: str) -> JointAttention | None:
        """How the attention of this path holds a text that its block rewrites; None where it reads none."""
        return next((each for each in self.joint if each.path.fullmatch(attention)), None)

    def call_arguments(self, denoiser: Any, conditions: Conditions, negative: Conditions) -> dict[str, Tensor]:
        """The conditions of conditional and unconditional rows as the pipeline's call takes them."""
        of_part = {"conditional": self.called(conditions), "unconditional": self.called(negative)}
        if self.zeros_by_itself and not negative.context.any():
            del of_part["unconditional"]
        given = {
            each: value for each in self.encoded if each.part in of_part and (value := getattr(of_part[each.part], each.kind)) is not None
        }
        return {each.name: each.take(denoiser, value) for each, value in given.items()}

    def as_called(self, denoiser: Any, context: Tensor) -> Tensor:
        """The part of a prompt's context that is the denoiser's argument of that name."""
        part: Tensor = self.encoded[0].take(denoiser, context)
        return part

    def shape_of_context(self, denoiser: Any) -> tuple[int, int]:
        """The tokens of a prompt (or as many as `inputs` has) and the channels of its context."""
        if self.context_shape is not None:
            return self.context_shape(denoiser)
        tokens, channels = self.inputs(denoiser, None)[self.arguments["context"]].shape[1:]
        return int(tokens), int(channels)

    @property
    def conditional_arguments(self) -> tuple[str, ...]:
        """As `prompt_arguments`, of prompts alone."""
        return tuple(each.name for each in self.encoded if each.part == "conditional")

    @property
    def prompt_arguments(self) -> tuple[str, ...]:
        """The names under which the pipeline's call takes what it would encode of prompts."""
        return tuple(each.name for each in self.encoded)

    def encode(
        self, pipe: Any, prompts: list[str], negative: list[str] | None, unconditional: bool, options: Mapping[str, Any]
    ) -> Conditions:
        """The pipeline's own conditions of prompts, or (unconditional) of negative prompts; see `encoding.encode`."""
        if (self.encodes_alone or self.encodes_apart) and unconditional:  # what it says then does not depend on the prompts beside it
            prompts, negative, unconditional = negative or prompts, None, False
        calls = [encode(pipe, prompts, negative, unconditional, {**options, **each}) for each in self.encodings]
        (found, given), several = calls[0], [found for found, _ in calls]
        conditional, other = self.split(self.encoded, pipe, self.settle(pipe, several if len(calls) > 1 else found), (), given)
        return other if unconditional and other is not None else conditional

    def is_wordless(self, denoiser: Any, module: str) -> bool:
        """Whether what a module reads of prompts has no position for each word."""
        return self.reads_of(denoiser, module) in self.wordless

    @property
    def has_summary(self) -> bool:
        """Whether prompts have a pooled summary beside their context."""
        return any(each.kind == "pooled" for each in self.encoded)

    def latents(self, inputs: Mapping[str, Any]) -> Tensor:
        """The noisy latents among a call's arguments, by their names."""
        latents: Tensor = inputs[self.arguments["latents"]]
        return latents

    def gathered(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call with one row of the context for each row of the latents; see `frames`."""
        name, frames = self.arguments["context"], self.frames(self.latents(inputs))
        return {**inputs, **({name: inputs[name][::frames]} if frames > 1 else {})}

    def spread(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What `gathered` gathers, as the denoiser's call takes it."""
        name, frames = self.arguments["context"], self.frames(self.latents(inputs))
        return {**inputs, **({name: inputs[name].repeat_interleave(frames, dim=0)} if frames > 1 else {})}

    def refuse_unknown(self, pipe: Any, silent: bool = False) -> None:
        """Raises UnsupportedModel for a model that the family's operations would treat wrongly (or would so without a sign)."""
        refuse_pipeline(pipe, self.encodes_apart)
        check_modes(pipe)
        denoiser = getattr(pipe, self.component)
        for refusal in self.refusals:
            if (refusal.silent or not silent) and refusal.applies(denoiser):
                raise UnsupportedModel(f"this {type(denoiser).__name__} is not supported: {refusal.reason}")


def uncompiled(denoiser: Any) -> Any:
    """A denoiser itself, without the wrapper that torch.compile puts around it."""
    return getattr(denoiser, "_orig_mod", denoiser)


def place_of(denoiser: Any) -> dict[str, Any]:
    """The device and the number format of a denoiser's inputs: those of its first parameter."""
    parameter = next(denoiser.parameters())
    return {"device": parameter.device, "dtype": parameter.dtype}


def is_compiled(denoiser: Any) -> bool:
    """Whether a denoiser, or a part of it, was compiled: wrapped, in place, or block by block."""
    inner = uncompiled(denoiser)
    return inner is not denoiser or any(getattr(module, "_compiled_call_impl", None) is not None for module in inner.modules())
