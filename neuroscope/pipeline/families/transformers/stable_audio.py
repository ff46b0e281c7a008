"""Stable Audio: a transformer whose blocks cross-attend to T5's states, and behind them to two tokens that say how long the sound is.

Two heads of queries, or more, share one of keys and values. The negative of a pipeline without a negative prompt is zeros.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import UnsupportedModel
from neuroscope.core.sounds import Sound
from neuroscope.pipeline.families._family import place_of
from neuroscope.pipeline.families.encoding import Encoded, begin_of
from neuroscope.pipeline.families.transformers.pixart import PIXART

_TOKENS, _LENGTH = 7, 8
_DURATIONS = 2  # the seconds at which the sound starts and ends


def _inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, config.in_channels, size[1] if size else _LENGTH, **place),
        "timestep": torch.ones(1, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.cross_attention_input_dim, **place),
        "global_hidden_states": torch.zeros(1, 1, config.global_states_input_dim, **place),
        "return_dict": False,
    }


def _read(denoiser: Any, _module: str, conditions: Conditions) -> Tensor:
    projected: Tensor = denoiser.cross_attention_proj(conditions.context)
    return projected


def _settle(pipe: Any, encoded: Tensor) -> Tensor:
    """Nothing is changed; a projection of prompts would be made twice of prompts that were encoded before."""
    if not isinstance(pipe.projection_model.text_projection, nn.Identity):
        raise UnsupportedModel(
            f"the projection_model of this {type(pipe).__name__} "
            "projects T5's states, which the published ones pass on; it is not supported"
        )
    return encoded


def _split(
    _order: Sequence[Encoded], pipe: Any, found: Tensor, args: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Conditions, Conditions | None]:
    """Negative prompts stand before the prompts, in one batch; zeros for negative prompts that are not given."""
    given = inspect.signature(getattr(type(pipe), begin_of(pipe))).bind(pipe, *args, **options).arguments
    if not given["do_classifier_free_guidance"]:
        return Conditions(found), None
    if given.get("negative_prompt") is None and given.get("negative_prompt_embeds") is None:
        return Conditions(found), Conditions(torch.zeros_like(found))
    negative, positive = found.chunk(2)
    return Conditions(positive), Conditions(negative)


@torch.no_grad()
def _decode(pipe: Any, latents: Tensor, options: Mapping[str, Any]) -> list[Image]:
    rate = int(pipe.vae.config.sampling_rate)
    start, end = (options.get(f"audio_{name}_in_s") for name in ("start", "end"))
    kept = slice(int((start or 0.0) * rate), None if end is None else int(end * rate))
    return [Sound.of(pipe.vae.decode(each[None]).sample[0, :, kept].float().cpu().numpy(), rate) for each in latents]


STABLE_AUDIO = replace(
    PIXART,
    name="stable-audio",
    denoisers=("StableAudioDiTModel",),
    matches=lambda _config: True,
    inputs=_inputs,
    encoded=(Encoded("prompt_embeds"), Encoded("negative_prompt_embeds", part="unconditional")),
    read=_read,
    decode=_decode,
    split=_split,
    words=lambda _pipe, tokenizer: tokenizer,
    noise=lambda _denoiser, predicted: predicted,
    mask=None,
    stages=re.compile(r"(?!)"),  # blocks are given positions, which have no rows
    prepares_text=re.compile(r"cross_attention_proj(\..+)?"),
    settle=_settle,
    latent_size=lambda _pipe, denoiser, *_size: (1, int(denoiser.config.sample_size)),
    tokens_beside=_DURATIONS,
    zeros_by_itself=True,
    makes="sound",
)
