"""How pipelines encode their prompts, and in which order the rows of their batches lie."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from neuroscope.core.conditions import Conditions, Part
from neuroscope.core.errors import InvalidInput

#: The methods with which every pipeline's call begins and ends; between the two lies a run.
BEGIN, END = "encode_prompt", "maybe_free_model_hooks"
_BEGINS = (BEGIN, "_encode_prompt")


def begin_of(pipe: Any) -> str:
    """The name of the method with which a pipeline's call encodes its prompts."""
    return next((name for name in _BEGINS if hasattr(pipe, name)), BEGIN)


def encode_without_run(pipe: Any) -> Callable[..., Any]:
    """The pipeline's own encoding of prompts, for texts that are no beginning of a run."""
    return functools.partial(getattr(type(pipe), begin_of(pipe)), pipe)


def missing_methods(pipe: Any) -> list[str]:
    """Which of the methods that begin and end a run a pipeline lacks, as modular pipelines do."""
    return [name for name in (begin_of(pipe), END) if not hasattr(pipe, name)]


def split_encoded(pipe: Any, encoded: Any, args: Sequence[Any], options: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The contexts of prompts and of negative prompts in what a pipeline's encoding returns.

    Args:
        pipe: the pipeline.
        encoded: what its method returned.
        args: what the method was given by position.
        options: what it was given by name.
    """
    if isinstance(encoded, tuple | list):
        return encoded[0], encoded[1]
    given = inspect.signature(getattr(type(pipe), begin_of(pipe))).bind(pipe, *args, **options).arguments
    if not given.get("do_classifier_free_guidance"):
        return encoded, None
    conditional, unconditional, _ = encoded.chunk(3)  # InstructPix2Pix: the prompt, the image without it, neither
    return conditional, unconditional


def encode(pipe: Any, prompts: list[str], negative: list[str] | None, clip_skip: int | None, unconditional: bool) -> Conditions:
    """The pipeline's own conditions of prompts, or (unconditional) of negative prompts; one image a prompt.

    Of pipelines whose `encode_prompt` returns contexts, and pooled summaries behind them, for prompts and negative prompts in turn.

    Raises:
        InvalidInput: a `clip_skip` that the pipeline does not have.
    """
    options: dict[str, Any] = {} if clip_skip is None else {"clip_skip": clip_skip}
    method = encode_without_run(pipe)
    if unknown := options.keys() - inspect.signature(method).parameters.keys():
        raise InvalidInput(f"{type(pipe).__name__} takes no {unknown.pop()}; leave it out")
    options |= {"prompt": prompts, "device": pipe._execution_device, "num_images_per_prompt": 1}
    options |= {"negative_prompt": negative, "do_classifier_free_guidance": unconditional}
    found = method(**options)
    if isinstance(found, tuple):
        return Conditions(*found[int(unconditional) :: 2])
    conditional, other = split_encoded(pipe, found, (), options)
    return Conditions(other if unconditional and other is not None else conditional)


def expected_parts(pipe: Any, count: int) -> tuple[Part, ...]:
    """The order of a batch of so many parts, where the contexts do not tell them apart."""
    if count == 3 and _is_instruct(pipe):
        return ("conditional", "unconditional", "unconditional")
    if hasattr(type(pipe), "do_perturbed_attention_guidance") and (count == 3 or not pipe.do_classifier_free_guidance):
        return ("unconditional", "conditional", "conditional") if count == 3 else ("conditional", "conditional")
    return ("unconditional", "conditional") if count > 1 else ("conditional",)


def _is_instruct(pipe: Any) -> bool:
    return any("InstructPix2Pix" in each.__name__ for each in type(pipe).__mro__)
