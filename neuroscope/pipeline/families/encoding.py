"""How pipelines encode their prompts, and in which order the rows of their batches lie."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from diffusers.utils import is_bs4_available, is_ftfy_available

from neuroscope.core.conditions import Conditions, Part
from neuroscope.core.errors import InvalidInput

#: The methods with which every pipeline's call begins and ends; between the two lies a run.
BEGIN, END = "encode_prompt", "maybe_free_model_hooks"
_BEGINS = (BEGIN, "_encode_prompt")
_INSTRUCTION = "complex_human_instruction"
#: The options of a pipeline's call that change how it encodes a prompt; what a caller leaves out is the call's own default.
TEXT_OPTIONS = ("clip_skip", "clean_caption", _INSTRUCTION)
#: How the methods of pipelines call the number of images (videos, sounds) of each prompt.
NUMBERS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
_SHARED = ("negative_prompt", "max_sequence_length", *TEXT_OPTIONS)


class Encoded(NamedTuple):
    """One of the tensors that a pipeline's `encode_prompt` returns, and that its call takes.

    Attributes:
        name: what the call calls it.
        kind: which field of `Conditions` it is.
        part: whether it is of the prompts ("conditional") or of the negative prompts.
        take: what of that field it is, from the denoiser and the field, where several lie one behind the other.
    """

    name: str
    kind: Literal["context", "pooled", "mask", "generated"] = "context"
    part: Part = "conditional"
    take: Callable[[Any, Any], Any] = lambda _denoiser, value: value


class WithLength:
    """A tokenizer as pipelines call it that give it a number of tokens of their own.

    Args:
        tokenizer: the pipeline's.
        length: the number of tokens, whatever the tokenizer allows.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer = tokenizer
        self.model_max_length = length
        self.is_fast = tokenizer.is_fast
        self.eos_token_id = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        """The prompts' tokens, as the tokenizer gives them."""
        return self._tokenizer(prompts, **options)


class LowerCase(WithLength):
    """As `WithLength`, where pipelines put prompts in lower case, as those with a T5 encoder do."""

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        """The prompts' tokens, as the tokenizer gives them."""
        return self._tokenizer([prompt.lower() for prompt in prompts], **options)


class Templated(WithLength):
    """A tokenizer as pipelines call it that put every prompt into a template, and keep the tokens from the prompt's first on.

    What follows the prompt in the template ends it.

    Args:
        tokenizer: the pipeline's.
        length: the number of tokens that are kept at most.
        template: what every prompt is put into, at {}.
        before: how many tokens stand before the prompt's.
    """

    def __init__(self, tokenizer: Any, length: int, template: str, before: int) -> None:
        super().__init__(tokenizer, length)
        start, behind = template.split("{}")
        self.eos_token_id = tokenizer(behind)["input_ids"][0]
        self._template, self._start, self._before = template, len(start), before

    def __call__(self, prompts: list[str], max_length: int = 0, **options: Any) -> dict[str, Any]:
        """The kept tokens at full length, with their places in the prompts."""
        found = self._tokenizer([self._template.format(prompt) for prompt in prompts], return_offsets_mapping=True)
        length, kept = max_length or self.model_max_length, slice(self._before, self._before + (max_length or self.model_max_length))
        ids = [each[kept] for each in found["input_ids"]]
        places = [self._places(each[kept], prompt) for each, prompt in zip(found["offset_mapping"], prompts, strict=True)]
        return {
            "input_ids": [[*each, *[self._tokenizer.pad_token_id] * (length - len(each))] for each in ids],
            "offset_mapping": [[*each, *[(0, 0)] * (length - len(each))] for each in places],
        }

    def _places(self, offsets: list[tuple[int, int]], prompt: str) -> list[tuple[int, int]]:
        """Places in a prompt, of places in the template; what stands around it is nowhere, and words begin behind spaces."""
        moved = [(start - self._start, end - self._start) for start, end in offsets]
        inside = [(max(0, start), end) if 0 < end <= len(prompt) else (0, 0) for start, end in moved]
        return [(end - len(prompt[start:end].lstrip()), end) for start, end in inside]


def without_texts(pipe: Any) -> dict[str, None]:
    """The options of a pipeline's call that name texts by default, left empty as they are to be beside encoded prompts."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {name: None for name in ("prompt", "negative_prompt") if name in known and isinstance(known[name].default, str)}


def default_of(pipe: Any, option: str) -> Any:
    """The value that an option of a pipeline's call has where it is left out; None where the call has no such option."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get(option)
    return None if parameter is None else parameter.default


def takes_negatives(pipe: Any) -> bool:
    """Whether a pipeline's call takes a negative prompt; few-step models have no unconditional rows."""
    return "negative_prompt" in inspect.signature(type(pipe).__call__).parameters


def text_options(pipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call's options by which a pipeline encodes prompts, as they are to be; None counts where it is not the default."""
    given = {name: value for name, value in options.items() if name in TEXT_OPTIONS}
    return {name: value for name, value in given.items() if value is not None or default_of(pipe, name) is not None}


def begin_of(pipe: Any) -> str:
    """The name of the method with which a pipeline's call encodes its prompts."""
    return next((name for name in _BEGINS if hasattr(pipe, name)), BEGIN)


def encode_without_run(pipe: Any) -> Callable[..., Any]:
    """The pipeline's own encoding of prompts, for texts that are no beginning of a run."""
    return functools.partial(getattr(type(pipe), begin_of(pipe)), pipe)


def missing_methods(pipe: Any) -> list[str]:
    """Which of the methods that begin and end a run a pipeline lacks, as modular pipelines do."""
    return [name for name in (begin_of(pipe), END) if not hasattr(pipe, name)]


def split_encoded(
    order: Sequence[Encoded], pipe: Any, found: Any, args: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Conditions, Conditions | None]:
    """The conditions of prompts and of negative prompts in what a pipeline's encoding returns.

    Args:
        order: what it returns, in order.
        pipe: the pipeline.
        found: what its method returned.
        args: what the method was given by position.
        options: what it was given by name.
    """
    if isinstance(found, tuple | list):
        given = {each: value for each, value in zip(order, found, strict=False) if value is not None}
        conditional, unconditional = (
            {each.kind: value for each, value in given.items() if each.part == part} for part in ("conditional", "unconditional")
        )
        return Conditions(**conditional), Conditions(**unconditional) if unconditional else None
    bound = inspect.signature(getattr(type(pipe), begin_of(pipe))).bind(pipe, *args, **options).arguments
    if not bound.get("do_classifier_free_guidance"):
        return Conditions(found), None
    prompt, without, _ = found.chunk(3)  # InstructPix2Pix: the prompt, the image without it, neither
    return Conditions(prompt), Conditions(without)


def encode(
    pipe: Any, prompts: list[str], negative: list[str] | None, unconditional: bool, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What a pipeline's own encoding returns of prompts and (unconditional) of negative prompts, and what it was given by name.

    Args:
        pipe: the pipeline; its call's own defaults hold for what is not given.
        prompts: the prompts; one image a prompt.
        negative: the negative prompts.
        unconditional: whether the negative prompts are encoded.
        options: of `TEXT_OPTIONS`.

    Raises:
        InvalidInput: an option that the pipeline does not have, or a negative prompt where it takes none.
    """
    method = encode_without_run(pipe)
    taken, call = inspect.signature(method).parameters, inspect.signature(type(pipe).__call__).parameters
    if unknown := {*options, *([] if negative is None else ["negative_prompt"])} - taken.keys():
        raise InvalidInput(f"{type(pipe).__name__} takes no {unknown.pop()}; leave it out")
    if _INSTRUCTION in options and options[_INSTRUCTION] != call[_INSTRUCTION].default:
        raise InvalidInput(f"another {_INSTRUCTION} would move the words, whose places are counted behind the pipeline's own; leave it out")
    given: dict[str, Any] = {name: call[name].default for name in _SHARED if name in call and name in taken} | dict(options)
    given |= {"prompt": prompts, "device": pipe._execution_device, **{name: 1 for name in NUMBERS if name in taken}}
    if given.get("clean_caption") and not (is_bs4_available() and is_ftfy_available()):
        given["clean_caption"] = False  # as pipelines do without these packages, with a warning at each prompt
    given |= {"do_classifier_free_guidance": unconditional} if "do_classifier_free_guidance" in taken else {}
    given |= {} if negative is None else {"negative_prompt": negative}
    given |= {f"prompt_{number}": None for number in (2, 3) if f"prompt_{number}" in taken}  # every encoder reads the prompt
    return method(**given), given


def expected_parts(pipe: Any, count: int, guided: bool) -> tuple[Part, ...]:
    """The order of a batch of so many parts, where the contexts do not tell them apart.

    Args:
        pipe: the pipeline, which may say itself whether it is guided.
        count: of parts.
        guided: whether it has encoded negative prompts.
    """
    if count == 3 and _is_instruct(pipe):
        return ("conditional", "unconditional", "unconditional")
    if hasattr(type(pipe), "do_perturbed_attention_guidance") and (count == 3 or not getattr(pipe, "do_classifier_free_guidance", guided)):
        return ("unconditional", "conditional", "conditional") if count == 3 else ("conditional", "conditional")
    return ("unconditional", "conditional") if count > 1 else ("conditional",)


def _is_instruct(pipe: Any) -> bool:
    return any("InstructPix2Pix" in each.__name__ for each in type(pipe).__mro__)
