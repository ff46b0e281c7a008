"""Plain PyTorch hooks on pipelines: which rows carry what, found without neuroscope."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.pipelines.example import NEGATIVE, PROMPTS, SOURCE

#: Pipelines whose contexts are not the outputs of their text encoders.
OWN = ("Sana", "LTX", "Wan")
_TEXTS = {"a": PROMPTS[0], "b": PROMPTS[1], "n": NEGATIVE, "s": SOURCE, "e": ""}


def encoded(pipe: Any, texts: list[str], **options: Any) -> tuple[Tensor, ...]:
    """What a pipeline's own `encode_prompt` returns of prompts, with its call's defaults."""
    call, known = (inspect.signature(each).parameters for each in (type(pipe).__call__, type(pipe).encode_prompt))
    given = {name: call[name].default for name in ("max_sequence_length", "complex_human_instruction") if name in call and name in known}
    unguided = {"do_classifier_free_guidance": False} if "do_classifier_free_guidance" in known else {}
    cleaned = {"clean_caption": False} if "clean_caption" in known else {}
    return pipe.encode_prompt(texts, **(given | unguided | cleaned | options))


def contexts(pipe: Any, texts: list[str]) -> list[Tensor]:
    """What cross-attention may read of texts, [text, token, channel]: the outputs of the text encoders that pipelines use.

    Pipelines that put other words or other padding around prompts encode them themselves.
    """
    if type(pipe).__name__.startswith(OWN):
        plain = [{}, {"complex_human_instruction": None}] if "Sana" in type(pipe).__name__ else [{}]
        return [encoded(pipe, texts, **options)[0] for options in plain]
    tokenizers = [each for name in ("tokenizer", "tokenizer_2") if (each := getattr(pipe, name, None)) is not None]
    encoders = [each for name in ("text_encoder", "text_encoder_2") if (each := getattr(pipe, name, None)) is not None]
    found = [
        _states(encoder, tokenizer, texts, length_of(pipe, tokenizer)) for encoder, tokenizer in zip(encoders, tokenizers, strict=True)
    ]
    if len(found) == 2:
        return [torch.cat([states[-2] for _, states in found], dim=-1)]
    last, states = found[0]
    return [last, states[-1]]


def length_of(pipe: Any, tokenizer: Any) -> int:
    """The tokens of a prompt: those of the call's own option, or at most 77."""
    option = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    return option.default if option else min(77, tokenizer.model_max_length)


def mask_of(pipe: Any, text: str) -> Tensor:
    """Which tokens of a prompt attention sees, [1, token]."""
    if type(pipe).__name__.startswith(OWN):
        return encoded(pipe, [text])[1]
    length = length_of(pipe, pipe.tokenizer)
    mask: Tensor = pipe.tokenizer([text], padding="max_length", max_length=length, return_tensors="pt").attention_mask
    return mask


def denoiser_of(pipe: Any) -> nn.Module:
    """A pipeline's denoiser."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def layouts(pipe: Any, run: Callable[[], Any]) -> list[str]:
    """For each call of the denoiser in `run`, one letter for each row; see `example.Layout`."""
    known = contexts(pipe, list(_TEXTS.values()))
    seen: list[str] = []

    def name(row: Tensor) -> str:
        near = (torch.isclose(states, row, atol=1e-5).all(dim=(1, 2)) for states in known if states.shape[1:] == row.shape)
        return next((letter for hits in near for letter, hit in zip(_TEXTS, hits, strict=True) if hit), "-")

    def watch(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        seen.append("".join(name(row) for row in given))

    with hooked(denoiser_of(pipe), before=watch):
        run()
    return seen


@contextmanager
def hooked(module: nn.Module, *, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None) -> Iterator[None]:
    """Plain hooks inside the block."""
    handles = [module.register_forward_pre_hook(before, with_kwargs=True)] if before else []
    handles += [module.register_forward_hook(after)] if after else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _states(encoder: Any, tokenizer: Any, texts: list[str], length: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    encoded = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    attended = {"attention_mask": encoded.attention_mask} if type(encoder).__name__.startswith("T5") else {}
    found = encoder(encoded.input_ids, **attended, output_hidden_states=True)
    return found[0], found.hidden_states
