"""HunyuanDiT: a transformer whose blocks cross-attend to the states of BERT (or CLIP) and, behind them, to projected states of T5.

Both are of the same prompt, and each has its own tokens. What stands at padding is replaced by vectors that were learned, and attended.
Keys are normed, head by head, behind their projection. T5's states also enter pooled, through the time embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.pipeline.families._family import SitePattern, place_of
from neuroscope.pipeline.families.decoding import decode
from neuroscope.pipeline.families.encoding import Encoded, WithLength
from neuroscope.pipeline.families.transformers.pixart import PIXART
from neuroscope.pipeline.families.unets.unet import UNET

POOLED = "time_extra_emb.extra_embedder.linear_1"
_FIRST, _SECOND = 77, 256  # tokens of each encoder, in diffusers' pipeline
_SIZES = 6  # original size, target size and crop, two numbers each


def _of_first(denoiser: Any, states: Tensor) -> Tensor:
    """The part of what lies behind one another that is of the first encoder; of a mask as well."""
    first = states[:, : denoiser.config.text_len]
    return first if states.ndim == 2 else first[..., : denoiser.config.cross_attention_dim]


def _of_second(denoiser: Any, states: Tensor) -> Tensor:
    """As `_of_first`, of T5."""
    second = states[:, denoiser.config.text_len :]
    return second if states.ndim == 2 else second[..., : denoiser.config.cross_attention_dim_t5]


def _behind(first: Tensor, second: Tensor) -> Tensor:
    """The states of two encoders one behind the other, with zeros where one has fewer channels."""
    channels = max(first.shape[-1], second.shape[-1])
    return torch.cat([functional.pad(each, (0, channels - each.shape[-1])) for each in (first, second)], dim=1)


def _split(
    _order: Sequence[Encoded], _pipe: Any, found: Any, _args: Sequence[Any], _options: Mapping[str, Any]
) -> tuple[Conditions, Conditions | None]:
    """What each encoder gave: states of prompts and of negative prompts, and the masks of either."""
    (first, other_first, mask, other_mask), (second, other_second, mask_2, other_mask_2) = found
    conditional = Conditions(_behind(first, second), mask=torch.cat([mask, mask_2], dim=1))
    if other_first is None or other_second is None:
        return conditional, None
    return conditional, Conditions(_behind(other_first, other_second), mask=torch.cat([other_mask, other_mask_2], dim=1))


def _read(denoiser: Any, module: str, conditions: Conditions) -> Tensor:
    second = _of_second(denoiser, conditions.context)
    if module == POOLED:
        pooled: Tensor = denoiser.time_extra_emb.pooler(second)
        return pooled
    if conditions.mask is None:
        raise InvalidInput("this change holds no mask, which says where padding is replaced; make it with graph.text.conditions")
    projected = denoiser.text_embedder(second.reshape(-1, second.shape[-1])).view(*second.shape[:2], -1)
    both = torch.cat([_of_first(denoiser, conditions.context), projected], dim=1)
    return torch.where(conditions.mask.bool()[..., None], both, denoiser.text_embedding_padding)


def _inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (2 * config.patch_size,) * 2
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, config.in_channels, height, width, **place),
        "timestep": torch.ones(1, **place),
        "encoder_hidden_states": torch.zeros(1, config.text_len, config.cross_attention_dim, **place),
        "text_embedding_mask": torch.ones(1, config.text_len, **place),
        "encoder_hidden_states_t5": torch.zeros(1, config.text_len_t5, config.cross_attention_dim_t5, **place),
        "text_embedding_mask_t5": torch.ones(1, config.text_len_t5, **place),
        "image_meta_size": torch.zeros(1, _SIZES, **place),
        "style": torch.zeros(1, dtype=torch.long, device=place["device"]),
    }


_ENCODED = (
    Encoded("prompt_embeds", take=_of_first),
    Encoded("prompt_embeds_2", take=_of_second),
    Encoded("prompt_attention_mask", "mask", take=_of_first),
    Encoded("prompt_attention_mask_2", "mask", take=_of_second),
    Encoded("negative_prompt_embeds", "context", "unconditional", _of_first),
    Encoded("negative_prompt_embeds_2", "context", "unconditional", _of_second),
    Encoded("negative_prompt_attention_mask", "mask", "unconditional", _of_first),
    Encoded("negative_prompt_attention_mask_2", "mask", "unconditional", _of_second),
)

HUNYUANDIT = replace(
    PIXART,
    name="hunyuan-dit",
    edit_reaches="the learned vectors at padding, which attention sees",
    denoisers=("HunyuanDiT2DModel",),
    matches=lambda _config: True,
    # the pooled text's module reads the image's sizes as well, which a run alone knows
    patterns=(*UNET.patterns, SitePattern("pooled", re.escape(POOLED), reader="time_extra_emb.extra_embedder.linear_2", in_layer=False)),
    inputs=_inputs,
    components={
        "self": re.compile(r"blocks\.\d+\.attn1"),
        "cross": re.compile(r"blocks\.\d+\.attn2"),
        "ff": re.compile(r"blocks\.\d+\.ff"),
    },
    stages=re.compile(r"(?!)"),  # blocks are given positions, which have no rows
    encoded=_ENCODED,
    encodings=({"text_encoder_index": 0, "max_sequence_length": _FIRST}, {"text_encoder_index": 1, "max_sequence_length": _SECOND}),
    split=_split,
    read=_read,
    decode=decode,
    tokenizers_apart=True,
    words=lambda pipe, tokenizer: WithLength(tokenizer, _FIRST if tokenizer is pipe.tokenizer else _SECOND),
    mask=None,
    context_shape=lambda denoiser: (
        denoiser.config.text_len + denoiser.config.text_len_t5,
        max(denoiser.config.cross_attention_dim, denoiser.config.cross_attention_dim_t5),
    ),
    prepares_text=re.compile(r"text_embedder(\..+)?|time_extra_emb\.pooler(\..+)?"),
)
