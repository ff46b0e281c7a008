"""A small `T5EncoderModel` for the rendered world, which learns what the testbed's CLIP says of captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from benchmarks.testbed.clip import draw_caption
from benchmarks.testbed.denoiser import Encoded
from benchmarks.testbed.loop import Schedule, fit
from neuroscope.testbed.architectures import WIDTH
from neuroscope.testbed.construction.builders.encoders import t5_encoder
from neuroscope.testbed.world import scenes

SCHEDULE = Schedule(steps=600, batch=96, rate=2e-3, averaging=0.98)


def train_t5(
    tokenizer: T5TokenizerFast,
    teacher: CLIPModel,
    teacher_tokenizer: CLIPTokenizer,
    folder: Path,
    schedule: Schedule = SCHEDULE,
    quiet: bool = False,
) -> T5EncoderModel:
    """Trains an encoder whose mean state, projected, is CLIP's embedding of the same caption."""
    torch.manual_seed(schedule.seed)
    encoder = t5_encoder(tokenizer, WIDTH)
    student = nn.ModuleDict({"encoder": encoder, "project": nn.Linear(WIDTH, teacher.config.projection_dim)})
    shown = scenes(held_out=False)

    def loss(rng: np.random.Generator) -> Tensor:
        texts = [draw_caption(rng, shown[index]).text for index in rng.integers(0, len(shown), schedule.batch)]
        encoded = encode(encoder, tokenizer, texts)
        embedded = student["project"](_mean(encoded))
        return 1 - functional.cosine_similarity(embedded, _taught(teacher, teacher_tokenizer, texts)).mean()

    trained: Any = fit(student, loss, schedule, folder, quiet)
    learned: T5EncoderModel = trained["encoder"]
    return learned


def encode(encoder: nn.Module, tokenizer: T5TokenizerFast, prompts: Sequence[str]) -> Encoded:
    """The encoder's states of prompts, padded to the longest of them, with the mask."""
    tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")
    states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return Encoded(states, tokens.attention_mask.to(states.dtype))


def _mean(encoded: Encoded) -> Tensor:
    """The mean state of each prompt's own tokens, [prompt, channel]."""
    if encoded.mask is None:
        return encoded.states.mean(dim=1)
    seen = encoded.mask[..., None]
    return (encoded.states * seen).sum(dim=1) / seen.sum(dim=1)


@torch.no_grad()
def _taught(teacher: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """CLIP's embeddings of texts, [prompt, channel]."""
    ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    embedded: Tensor = teacher.text_projection(teacher.text_model(ids).pooler_output)
    return embedded
