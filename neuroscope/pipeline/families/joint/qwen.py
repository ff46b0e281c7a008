"""Qwen-Image: blocks in which an image and its text attend to one another with weights of their own, under the prompt's mask.

The text is the states of Qwen2.5-VL, which reads the prompt in a template; the transformer is given those from the prompt's first token on.
No pooled text reaches it. With `true_cfg_scale` above 1 the negative prompt has a call of its own, and what the two are combined to is
scaled to the conditional call's norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.pipeline.families._family import Family, SitePattern, place_of
from neuroscope.pipeline.families.attentions import AttentionMask, FirstText, JointAttention
from neuroscope.pipeline.families.encoding import Encoded, Templated, default_of
from neuroscope.pipeline.families.joint.flux import packed_size, timestep_of
from neuroscope.pipeline.families.joint.sd3 import BLOCK, OF_BLOCKS
from neuroscope.pipeline.families.transformers.ltx import FUSED
from neuroscope.pipeline.families.transformers.pixart import block_name
from neuroscope.pipeline.families.unets.unet import CHUNKED

_EMBEDDER = "txt_in"
_TOKENS = 7  # images have four
_UNSEEN = -10000.0
_PATCH = 2  # latents on a side of what a token of the image holds


def _inputs(denoiser: Any, size: tuple[int, ...] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = (each // _PATCH for each in size or (2 * _PATCH,) * 2)
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, height * width, config.in_channels, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.joint_attention_dim, **place),
        "encoder_hidden_states_mask": torch.ones(1, _TOKENS, dtype=torch.bool, device=place["device"]),
        "timestep": torch.ones(1, **place),
        "img_shapes": [[(1, height, width)]],
    }


def _settle(pipe: Any, encoded: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """States and mask at the length of the longest prompts: the pipeline pads them to the longest of a batch. Nothing sees the padding."""
    context, mask = encoded
    missing = max(0, default_of(pipe, "max_sequence_length") - context.shape[1])
    seen = torch.ones(context.shape[:2], dtype=torch.long, device=context.device) if mask is None else mask
    return functional.pad(context, (0, 0, 0, missing)), functional.pad(seen, (0, missing))


def _read(denoiser: Any, module: str, conditions: Conditions) -> Tensor:
    """The text before all blocks, which alone is read of prompts without a run."""
    if module != _EMBEDDER:
        raise InvalidInput(f"{module} reads a text that the blocks before it have rewritten; record it in a run")
    normed: Tensor = denoiser.txt_norm(conditions.context)
    return normed


def _first_text(denoiser: Any, given: Mapping[str, Any], conditions: Conditions) -> Tensor:
    """What the first block's attention reads of prompts at the step of a call, or at its rows' own steps."""
    first, latents = denoiser.transformer_blocks[0], given["hidden_states"]
    # the embedder is a site, and its hooks are not for this prompt
    text = denoiser.txt_in.forward(denoiser.txt_norm(conditions.context.to(latents)))
    known = denoiser.time_text_embed(given["timestep"].to(latents.dtype), latents)
    found: Tensor = first._modulate(first.txt_norm1(text), first.txt_mod(known).chunk(2, dim=-1)[0])[0]
    return found


@torch.no_grad()
def _decode(pipe: Any, latents: Tensor, options: Mapping[str, Any]) -> list[Image]:
    """The images of final latents [image, token, channel]."""
    config, side = pipe.vae.config, pipe.default_sample_size * pipe.vae_scale_factor
    unpacked = pipe._unpack_latents(latents, *(options.get(name) or side for name in ("height", "width")), pipe.vae_scale_factor)
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1, 1).to(latents) for each in (config.latents_mean, config.latents_std))
    scaled = (unpacked / (1.0 / deviation) + mean).to(pipe.vae.dtype)  # as the pipeline rounds
    pixels = torch.cat([pipe.vae.decode(each[None], return_dict=False)[0][:, :, 0] for each in scaled])
    images: list[Image] = pipe.image_processor.postprocess(pixels, output_type="pil")
    return images


def _words(pipe: Any, tokenizer: Any) -> Templated:
    return Templated(tokenizer, default_of(pipe, "max_sequence_length"), pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx)


#: Attention adds a mask of numbers, in which tokens of the image have 1, to its scores.
_MASK = AttentionMask(
    "encoder_hidden_states_mask",
    lambda mask: ((1 - mask.float()) * _UNSEEN)[:, None],
    as_bias=lambda given, _tokens, dtype: (given - 1 if given.is_floating_point() else (1 - given.to(dtype)) * _UNSEEN)[:, None],
    as_given=lambda bias, _given: bias[:, 0] + 1,
)

ENCODED = (
    Encoded("prompt_embeds"),
    Encoded("prompt_embeds_mask", "mask"),
    Encoded("negative_prompt_embeds", part="unconditional"),
    Encoded("negative_prompt_embeds_mask", "mask", "unconditional"),
)

QWEN = Family(
    name="qwen-image",
    component="transformer",
    denoisers=("QwenImageTransformer2DModel",),
    matches=lambda config: not (config.zero_cond_t or config.use_additional_t_cond or config.use_layer3d_rope),
    patterns=(
        SitePattern("context", _EMBEDDER, text_only=True, in_layer=False),
        *OF_BLOCKS[:-1],
        SitePattern("feedforward", r"img_mlp\.net\.0", reader="img_mlp.net.2", within=BLOCK),
    ),
    refusals=(FUSED, CHUNKED),
    block_name=block_name,
    inputs=_inputs,
    components={"cross": re.compile(rf"{BLOCK}\.attn"), "ff": re.compile(rf"{BLOCK}\.img_mlp")},
    stages=re.compile(rf"{BLOCK}|norm_out"),
    encoded=ENCODED,
    read=_read,
    decode=_decode,
    words=_words,
    arguments={
        "latents": "hidden_states",
        "timestep": "timestep",
        "context": "encoder_hidden_states",
        "mask": "encoder_hidden_states_mask",
    },
    mask=_MASK,
    prepares_text=re.compile(rf"txt_(norm|in)|{BLOCK}\.(attn\.(add_q_proj|to_add_out|norm_added_[qk])|txt_(mlp|mod)(\..+)?|txt_norm[12])"),
    settle=_settle,
    latent_size=packed_size,
    channels_last=True,
    calls=("conditional", "unconditional"),
    joint=(JointAttention(re.compile(rf"{BLOCK}\.attn")),),
    first_text=FirstText("transformer_blocks.0.attn", _first_text),
    shared=("img_shapes", "image_rotary_emb"),
    encodes_apart=True,
    timestep=timestep_of,
)
