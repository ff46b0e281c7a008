"""FLUX.1: blocks in which an image and its text attend to one another with weights of their own, then blocks that have one set for both.

The text is the states of T5; a pooled text of CLIP reaches every block through its norms. The second kind of block reads one sequence, the
text in front of the image, so that its keys and values are sites of the text's tokens alone. Guidance is a number that the model is given;
with `true_cfg_scale` above 1 the negative prompt has a call of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.pipeline.families._family import Family, SitePattern, place_of
from neuroscope.pipeline.families.attentions import FirstText, JointAttention
from neuroscope.pipeline.families.decoding import decode
from neuroscope.pipeline.families.encoding import Encoded, WithLength, default_of
from neuroscope.pipeline.families.joint.sd3 import (
    BLOCK,
    CONTEXT,
    IMAGE_TOKENS,
    OF_BLOCKS,
    OF_TEXT,
    POOLED_TEXT,
    TEXT_MODULES,
    first_text,
    read_text,
)
from neuroscope.pipeline.families.unets.unet import CHUNKED, FUSED

_TOKENS = 7  # images have four
_PATCH = 2  # latents on a side of what a token of the image holds
_SINGLE = r"single_transformer_blocks\.\d+"
TIMESTEPS = 1000  # the pipeline divides by it, whatever the scheduler has


def _inputs(denoiser: Any, size: tuple[int, ...] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (2 * _PATCH,) * 2
    tokens = (height // _PATCH) * (width // _PATCH)
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, tokens, config.in_channels, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.joint_attention_dim, **place),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim, **place),
        "timestep": torch.ones(1, **place),
        "img_ids": torch.zeros(tokens, 3, **place),
        "txt_ids": torch.zeros(_TOKENS, 3, **place),
        "guidance": torch.ones(1, device=place["device"]) if config.guidance_embeds else None,
    }


def _block_name(path: str) -> str:
    """'transformer_blocks.10' is 'joint.10', 'single_transformer_blocks.10' is 'single.10'."""
    kind, _, number = path.partition(".")
    return f"{'single' if kind.startswith('single') else 'joint'}.{number.partition('.')[0]}"


def _split(
    _order: Sequence[Encoded], _pipe: Any, found: Any, _args: Sequence[Any], _options: Mapping[str, Any]
) -> tuple[Conditions, Conditions | None]:
    """Of one list of prompts, whichever these are: a negative prompt has a call of its own."""
    context, pooled, _places = found
    return Conditions(context, pooled), None


def _decode(pipe: Any, latents: Tensor, options: Mapping[str, Any]) -> list[Image]:
    """The images of final latents [image, token, channel]."""
    side = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = (options.get(name) or side for name in ("height", "width"))
    return decode(pipe, pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor), options)


def packed_size(
    pipe: Any, _denoiser: Any, height: int | None = None, width: int | None = None, _frames: int | None = None
) -> tuple[int, ...]:
    """The height and width of latents of which a token of the image holds four, by default the pipeline's."""
    side = pipe.default_sample_size * pipe.vae_scale_factor
    high, wide = (_PATCH * ((each or side) // (_PATCH * pipe.vae_scale_factor)) for each in (height, width))
    return high, wide


def timestep_of(pipe: Any, given: float) -> float:
    """The nearest timestep of the scheduler: what is given was divided and rounded."""
    known: Tensor = pipe.scheduler.timesteps.double()
    return float(known[(known - TIMESTEPS * given).abs().argmin()]) if len(known) else TIMESTEPS * given


def _first_text(denoiser: Any, given: Mapping[str, Any], conditions: Conditions) -> Tensor:
    """As `first_text`; the model takes numbers in units of the whole schedule, which it multiplies in its own format."""
    times = {
        name: given[name].to(given["hidden_states"].dtype) * TIMESTEPS for name in ("timestep", "guidance") if given.get(name) is not None
    }
    return first_text(denoiser, {**given, **times}, conditions)


FLUX = Family(
    name="flux",
    component="transformer",
    denoisers=("FluxTransformer2DModel",),
    matches=lambda _config: True,
    patterns=(
        POOLED_TEXT,
        CONTEXT,
        *OF_BLOCKS,
        SitePattern("key", r"attn\.to_k", reader="attn.to_q", reader_rows=True, within=_SINGLE, rewritten=True),
        SitePattern("value", r"attn\.to_v", reader="proj_out", within=_SINGLE, rewritten=True),
    ),
    refusals=(IMAGE_TOKENS, FUSED, CHUNKED),
    block_name=_block_name,
    inputs=_inputs,
    components={
        "cross": re.compile(rf"({BLOCK}|{_SINGLE})\.attn"),
        "ff": re.compile(rf"{BLOCK}\.ff|{_SINGLE}\.proj_mlp"),
        **OF_TEXT,
    },
    stages=re.compile(rf"{BLOCK}|{_SINGLE}|norm_out"),
    encoded=(
        Encoded("prompt_embeds"),
        Encoded("pooled_prompt_embeds", "pooled"),
        Encoded("negative_prompt_embeds", part="unconditional"),
        Encoded("negative_pooled_prompt_embeds", "pooled", "unconditional"),
    ),
    split=_split,
    read=read_text,
    tokenizers=("tokenizer_2",),
    decode=_decode,
    words=lambda pipe, tokenizer: WithLength(tokenizer, default_of(pipe, "max_sequence_length")),
    arguments={
        "latents": "hidden_states",
        "timestep": "timestep",
        "context": "encoder_hidden_states",
        "pooled": "pooled_projections",
    },
    prepares_text=re.compile(TEXT_MODULES),
    latent_size=packed_size,
    joint=(JointAttention(re.compile(rf"{BLOCK}\.attn")), JointAttention(re.compile(rf"{_SINGLE}\.attn"), "hidden_states", leads=True)),
    first_text=FirstText("transformer_blocks.0.attn", _first_text),
    shared=("img_ids", "txt_ids", "image_rotary_emb"),
    encodes_apart=True,
    calls=("conditional", "unconditional"),
    timestep=timestep_of,
    channels_last=True,
)
