"""Qwen-Image 2.1: blocks over one sequence, the text in front, in which no token of the text sees the image or the step.

So the text's keys and values in every block depend on the prompt alone, although blocks rewrite the text and have one set of weights for
text and image. The pipeline computes them in the first step and keeps them; inside blocks every call computes them again, which gives the
same. The image's place in the sequence follows the length of its prompt.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21FlexAttnProcessor, apply_rotary_emb_qwen
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.pipeline.families._family import Family, Refusal, SitePattern, place_of
from neuroscope.pipeline.families.attentions import JointAttention
from neuroscope.pipeline.families.encoding import Encoded, Templated, default_of
from neuroscope.pipeline.families.joint.flux import timestep_of
from neuroscope.pipeline.families.joint.qwen import ENCODED
from neuroscope.pipeline.families.joint.sd3 import BLOCK
from neuroscope.pipeline.families.transformers.ltx import FUSED
from neuroscope.pipeline.families.transformers.pixart import block_name
from neuroscope.pipeline.families.unets.unet import CHUNKED

_TOKENS = 7
_SLOT = 4  # tokens of the image that take the place of one
_LONGEST = 512  # tokens of prompts, which are padded to as many inside blocks


def _inputs(denoiser: Any, size: tuple[int, ...] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (2, 2)
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, height * width, config.in_channels, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.context_in_dim, **place),
        "encoder_hidden_states_mask": torch.ones(1, _TOKENS, dtype=torch.bool, device=place["device"]),
        "timestep": torch.ones(1, **place),
        "img_shapes": [[(1, height, width)]],
        "img_mask": torch.cat([torch.zeros(1, _TOKENS), torch.ones(1, height * width // _SLOT)], dim=1).bool().to(place["device"]),
    }


def _walk(denoiser: Any, given: Mapping[str, Any]) -> None:
    """Its modules in order; its own call finds the image's place by numbers, which tensors without values lack."""
    tokens = torch.cat([denoiser.txt_in(given["encoder_hidden_states"]), denoiser.img_in(given["hidden_states"])], dim=1)
    time = denoiser.time_text_embed(given["timestep"], tokens)
    modulation = denoiser.modulation(time)
    for block in denoiser.transformer_blocks:
        tokens = block(hidden_states=tokens, modulation=modulation)
    denoiser.proj_out(denoiser.norm_out(tokens, time))


def _length(pipe: Any) -> int:
    return min(_LONGEST, int(pipe.processor.tokenizer.model_max_length) - int(pipe._drop_idx))


def _settle(pipe: Any, encoded: tuple[Tensor, Tensor | None, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """States and masks at one length: the pipeline pads them to the longest of a batch. Nothing sees the padding."""
    context, mask, images = encoded
    if images.any():
        raise InvalidInput("the prompt is encoded with an image, which stands among its tokens; leave out image=")
    if (missing := _length(pipe) - context.shape[1]) < 0:
        raise InvalidInput(
            f"the prompt has {counted(context.shape[1], 'token')}, and at most {_length(pipe)} are read here; give a shorter one"
        )
    seen = torch.ones(context.shape[:2], dtype=torch.long, device=context.device) if mask is None else mask
    return functional.pad(context, (0, 0, 0, missing)), functional.pad(seen, (0, missing)), functional.pad(images, (0, missing))


def _split(
    _order: Sequence[Encoded], _pipe: Any, found: Any, _args: Sequence[Any], _options: Mapping[str, Any]
) -> tuple[Conditions, Conditions | None]:
    """Of one list of prompts, whichever these are: a negative prompt has a call of its own."""
    context, mask, _images = found
    return Conditions(context, mask=mask), None


def _called(conditions: Conditions) -> Conditions:
    """Without the padding behind the longest prompt."""
    longest = int(conditions.of_tokens.sum(dim=1).max())
    return Conditions(conditions.context[:, :longest], mask=conditions.of_tokens[:, :longest])


@contextmanager
def _inside(denoiser: Any) -> Iterator[None]:
    """Calls compute the text's keys and values anew, place the image behind the prompt's own tokens, and give the image alone."""
    signature, place = inspect.signature(denoiser.forward), {"tokens": 0, "own": 0, "image": 0}

    def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = signature.bind(*args, **kwargs).arguments
        context, mask = given["encoder_hidden_states"], given.get("encoder_hidden_states_mask")
        own = context.shape[1] if mask is None else int(mask.sum(dim=1).max())
        place.update(tokens=context.shape[1], own=own, image=given["hidden_states"].shape[1])
        return (), given | {"kv_cache": None, "kv_cache_mode": None}

    def put(module: Any, _args: tuple[Any, ...], turns: Tensor) -> Tensor:
        moved = turns.clone()
        moved[place["tokens"] :, : module.axes_dim[0] // 2] = module.freqs[0][place["own"]]
        return moved

    def end(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        whole = place["tokens"] + place["image"]
        return tree_map(lambda each: each[:, place["tokens"] :] if isinstance(each, Tensor) and each.shape[1] == whole else each, output)

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(denoiser.pos_embed.register_forward_hook(put).remove)
        stack.callback(denoiser.register_forward_hook(end).remove)
        yield


def _read(denoiser: Any, module: str, conditions: Conditions) -> Tensor:
    """What a block's keys and values read of prompts, [prompt, token, channel]: the text alone through the blocks before it."""
    text = denoiser.txt_in(conditions.context)
    modulation = denoiser.modulation(denoiser.time_text_embed(text.new_zeros(1), text))
    first, gate, second, other_gate = modulation[:, None].chunk(4, dim=-1)
    for path, block in denoiser.transformer_blocks.named_children():
        given: Tensor = block.img_norm1(text) * (1 + first)
        if module.startswith(f"transformer_blocks.{path}."):
            return given
        text = text + gate.tanh() * _attended(denoiser, block.attn, given, conditions.of_tokens)
        text = text + other_gate.tanh() * block.img_mlp(block.img_norm2(text) * (1 + second))
    raise InvalidInput(f"{module} reads no prompt; give a key or a value")


def _attended(denoiser: Any, attention: Any, given: Tensor, seen: Tensor) -> Tensor:
    """What a block's attention gives to the text, of which no token sees a later one; hooks of its sites are not for this prompt."""
    heads = [getattr(attention, name).forward(given).unflatten(-1, (attention.heads, -1)) for name in ("to_q", "to_k", "to_v")]
    turns = torch.cat([each[: given.shape[1]].to(given.device) for each in denoiser.pos_embed.freqs], dim=-1)
    normed = zip((attention.norm_q, attention.norm_k), heads, strict=False)
    query, key = (apply_rotary_emb_qwen(norm(each), turns, use_real=False) for norm, each in normed)
    visible = seen.bool()[:, None, None] & seen.new_ones(given.shape[1], given.shape[1]).tril().bool()
    query, key, value = (each.transpose(1, 2) for each in (query, key, heads[2]))
    found = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    attended: Tensor = attention.to_out[0].forward(found.transpose(1, 2).flatten(2))
    return attended


def _size(pipe: Any, options: Mapping[str, Any]) -> tuple[int, int]:
    sides = [options.get(name) or options.get("output_resolution") or default_of(pipe, "output_resolution") for name in ("height", "width")]
    unit = 2 * pipe.vae_scale_factor
    height, width = (2 * (int(side) // unit) for side in sides)
    return height, width


@torch.no_grad()
def _decode(pipe: Any, latents: Tensor, options: Mapping[str, Any]) -> list[Image]:
    """The images of final latents [image, token, channel]."""
    height, width = (pipe.vae_scale_factor * each for each in _size(pipe, options))
    unpacked = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor).to(pipe.vae.dtype)
    config = pipe.vae.config
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1, 1).to(unpacked) for each in (config.latents_mean, config.latents_std))
    pixels = torch.cat([pipe.vae.decode(each[None], return_dict=False)[0][:, :, 0] for each in unpacked * deviation + mean])
    images: list[Image] = pipe.image_processor.postprocess(pixels, output_type="pil")
    return images


_FLEX = Refusal(
    "flex attention",
    "its attention processors are those of flex attention, whose masks fit one batch; call `pipe.transformer.set_attn_processor` with "
    "QwenImage21AttnProcessor first",
    lambda denoiser: any(isinstance(each, QwenImage21FlexAttnProcessor) for each in denoiser.attn_processors.values()),
    silent=True,
)

QWEN21 = Family(
    name="qwen-image-2.1",
    component="transformer",
    denoisers=("QwenImage21Transformer2DModel",),
    matches=lambda config: config.causal_condition,
    patterns=(
        SitePattern("key", r"attn\.to_k", text_only=True, reader="attn.to_q", reader_rows=True, within=BLOCK, rewritten=True),
        SitePattern("value", r"attn\.to_v", text_only=True, reader="attn.to_out.0", within=BLOCK, rewritten=True),
    ),
    refusals=(FUSED, CHUNKED, _FLEX),
    block_name=block_name,
    inputs=_inputs,
    components={"cross": re.compile(rf"{BLOCK}\.attn"), "ff": re.compile(rf"{BLOCK}\.img_mlp")},
    stages=re.compile(r"(?!)"),  # the rows' modulation has one entry more than there are rows
    encoded=ENCODED,
    split=_split,
    read=_read,
    decode=_decode,
    tokenizers=("processor",),
    words=lambda pipe, processor: Templated(processor.tokenizer, _length(pipe), pipe.prompt_template_t2i, pipe._drop_idx),
    arguments={
        "latents": "hidden_states",
        "timestep": "timestep",
        "context": "encoder_hidden_states",
        "mask": "encoder_hidden_states_mask",
    },
    prepares_text=re.compile(r"txt_in(\..+)?"),
    settle=_settle,
    called=_called,
    inside=_inside,
    walk=_walk,
    latent_size=lambda pipe, _denoiser, height, width, _frames=None: _size(pipe, {"height": height, "width": width}),
    channels_last=True,
    calls=("conditional", "unconditional"),
    joint=(JointAttention(re.compile(rf"{BLOCK}\.attn"), "hidden_states", leads=True, per_row=("hidden_states", "key_valid")),),
    shared=("img_shapes",),
    encodes_apart=True,
    timestep=timestep_of,
)
