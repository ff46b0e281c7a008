"""How pipelines encode their prompts, and in which order the rows of their batches lie."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from neuroscope.core.conditions import Part

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


def expected_parts(pipe: Any, count: int) -> tuple[Part, ...]:
    """The order of a batch of so many parts, where the contexts do not tell them apart."""
    if count == 3 and _is_instruct(pipe):
        return ("conditional", "unconditional", "unconditional")
    if hasattr(type(pipe), "do_perturbed_attention_guidance") and (count == 3 or not pipe.do_classifier_free_guidance):
        return ("unconditional", "conditional", "conditional") if count == 3 else ("conditional", "conditional")
    return ("unconditional", "conditional") if count > 1 else ("conditional",)


def _is_instruct(pipe: Any) -> bool:
    return any("InstructPix2Pix" in each.__name__ for each in type(pipe).__mro__)
