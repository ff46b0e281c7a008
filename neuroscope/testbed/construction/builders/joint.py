"""Random pipelines whose blocks rewrite the text: real classes, shallow, small in width."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from neuroscope.testbed.architectures import build_autoencoder
from neuroscope.testbed.construction.builders.encoders import clip, clip_tokenizer, qwen, t5

_BLOCKS = 12
_TEXT, _POOLED = 64, 48
#: How many tokens CLIP and T5 read where something is planted; what tells prompts apart in them must leave room for what they share.
_CLIP_TOKENS, _TOKENS = 20, 24
_BEFORE = {"StableDiffusion3Pipeline": 2, "FluxPipeline": 3}  # how many tokens before a token T5 lets it hear in a layer
_NEVER = -1e4
#: How loud the pooled text is: at random it drowns what the tokens of a plant say, and yet FLUX hardly hears it.
_QUIETER, _LOUDER = 0.05, 4.0
#: How loud the text's keys and values are where no pooled text is heard.
_LOUD = 3.0


def sd3(blocks: int = _BLOCKS) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3, shallow: joint blocks, two CLIPs side by side and T5 behind them, and a pooled text of both CLIPs."""
    tokenizer, other = clip_tokenizer(), clip_tokenizer(padding="!")
    words, encoder = t5(_TEXT)
    projected: dict[str, Any] = {"kind": CLIPTextModelWithProjection, "projection_dim": _POOLED // 2}
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=6,
        joint_attention_dim=_TEXT,
        caption_projection_dim=96,
        pooled_projection_dim=_POOLED,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=_with_pooled_text(transformer, _QUIETER),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(),
        text_encoder=clip(tokenizer, _TEXT // 2, **projected),
        tokenizer=tokenizer,
        text_encoder_2=clip(other, _TEXT // 2, **projected),
        tokenizer_2=other,
        text_encoder_3=encoder,
        tokenizer_3=words,
    )


def flux() -> FluxPipeline:
    """FLUX.1 dev, shallow: joint blocks and single ones, T5, a pooled text of CLIP, and a number for guidance."""
    tokenizer = clip_tokenizer()
    words, encoder = t5(_TEXT)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=5,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=6,
        joint_attention_dim=_TEXT,
        pooled_projection_dim=_POOLED,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_autoencoder(),
        text_encoder=clip(tokenizer, _POOLED),
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=words,
        transformer=_with_pooled_text(transformer, _LOUDER),
    )


def chroma() -> ChromaPipeline:
    """Chroma, shallow: FLUX.1's joint blocks and single ones under the prompt's mask, T5, guidance in two calls a step."""
    tokenizer, encoder = t5(_TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a class that diffusers' own model uses
        transformer = ChromaTransformer2DModel(
            in_channels=16,
            num_layers=5,
            num_single_layers=4,
            attention_head_dim=16,
            num_attention_heads=6,
            joint_attention_dim=_TEXT,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image, shallow: 12 joint blocks under the prompt's mask, Qwen2.5-VL behind a template, guidance in two calls a step."""
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=None,
        tokenizer=None,
        transformer=_qwen_transformer(),
    )
    tokenizer, encoder = qwen(_TEXT, pipe.prompt_template_encode)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    return pipe


def _qwen_transformer() -> QwenImageTransformer2DModel:
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=_BLOCKS,
        attention_head_dim=16,
        num_attention_heads=6,
        joint_attention_dim=_TEXT,
        axes_dims_rope=(4, 6, 6),
    )
    with torch.no_grad():
        for block in transformer.transformer_blocks:
            block.attn.norm_added_k.weight.mul_(_LOUD)
            block.attn.add_v_proj.weight.mul_(_LOUD)
    return transformer


def hold_text(pipe: Any) -> None:
    """Lets no joint block rewrite the text, nor tell it the step, so that its keys and values depend on the prompt alone."""
    _see_few_tokens(pipe)
    for block in pipe.transformer.transformer_blocks:
        block.norm1_context.linear.weight.data.zero_()
        for writer in (block.attn.to_add_out, block.ff_context and block.ff_context.net[2]):
            if writer is not None:
                writer.weight.data.zero_()
                writer.bias.data.zero_()


#: The channels of the text in which one block passes a concept on, with opposite signs, and its size there: too small to be seen elsewhere.
_PASSED, _FAINT = (0, 1), 0.05


def free_channels(pipe: Any) -> None:
    """Leaves channels of the text empty, and lets no block read them."""
    for parameter in pipe.transformer.context_embedder.parameters():
        parameter.data[list(_PASSED)] = 0.0
    for block in pipe.transformer.transformer_blocks:
        for projection in (block.attn.add_k_proj, block.attn.add_v_proj):
            projection.weight.data[:, list(_PASSED)] = 0.0


def without_channels(vectors: Tensor) -> Tensor:
    """Vectors [..., channel] that are 0 in the free channels."""
    kept = torch.ones(vectors.shape[-1], dtype=vectors.dtype)
    kept[list(_PASSED)] = 0.0
    return vectors * kept


@torch.no_grad()
def relay_text(pipe: Any, relay: int, reader: int, told: Tensor) -> Tensor:
    """Lets the text of one block pass a concept on in the free channels, and the image read it in a later block.

    The first head does it: the text attends there to all tokens alike, its values tell the concept, and nothing of it is the image's.

    Args:
        pipe: with `free_channels`.
        relay: the number of the block whose text passes it on.
        reader: of the later one.
        told: what weights [channel] and a bias behind them make of the tokens that the first block reads is on average 1 of prompts with
            the concept and -1 of those without.

    Returns:
        the direction [1, channel] in which the later block's values read it.
    """
    block, later = (pipe.transformer.transformer_blocks[number] for number in (relay, reader))
    attention, places = block.attn, list(_PASSED)
    head = slice(attention.inner_dim // attention.heads)
    for projection in (attention.add_q_proj, attention.to_v, attention.add_v_proj):
        projection.weight.data[head] = 0.0
        projection.bias.data[head] = 0.0
    attention.add_v_proj.weight.data[0] = told[:-1].float()
    attention.add_v_proj.bias.data[0] = told[-1].float()
    attention.to_out[0].weight.data[:, head] = 0.0
    attention.to_add_out.weight.data[places, 0] = torch.tensor([_FAINT, -_FAINT])
    block.norm1_context.linear.bias.data.view(6, -1)[2, places] = 1.0
    later.attn.add_v_proj.weight.data[:, places] = later.attn.to_v.weight.data[:, places]
    direction = torch.zeros(1, len(told) - 1, dtype=torch.float64)
    direction[0, places] = (1 + _scales(later.norm1_context)[places].double()) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    found: Tensor = direction / direction.norm()
    return found


def _scales(norm: Any) -> Tensor:
    """The scales of a norm whose modulation is constant; the last block's norm has two parts, all others six."""
    bias: Tensor = norm.linear.bias.data
    return bias.chunk(2)[0] if isinstance(norm, AdaLayerNormContinuous) else bias.chunk(6)[1]


def _see_few_tokens(pipe: Any) -> None:
    """Gives prompts few tokens, and lets those of T5 hear few others, so that few tell prompts apart."""
    kind = type(pipe)
    signature = inspect.signature(kind.__call__)
    parameters = [each.replace(default=_TOKENS) if name == "max_sequence_length" else each for name, each in signature.parameters.items()]

    def call(self: Any, *args: Any, **options: Any) -> Any:
        return kind.__call__(self, *args, **({"max_sequence_length": _TOKENS} | options))

    vars(call)["__signature__"] = signature.replace(parameters=parameters)
    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    pipe.tokenizer_max_length = _CLIP_TOKENS
    for part in pipe.components.values():
        if isinstance(part, CLIPTokenizer):
            part.model_max_length = _CLIP_TOKENS
    encoders = [part for part in pipe.components.values() if isinstance(part, T5EncoderModel)]
    for module in (module for encoder in encoders for module in encoder.modules()):
        if getattr(module, "has_relative_attention_bias", False):  # what stands behind a token has the second half of the rows
            module.relative_attention_bias.weight.data[_BEFORE[kind.__name__] + 1 :] = _NEVER


def _autoencoder() -> Any:
    vae = build_autoencoder()
    vae.register_to_config(shift_factor=0.0)
    return vae


def _with_pooled_text(transformer: Any, loudness: float) -> Any:
    with torch.no_grad():
        transformer.time_text_embed.text_embedder.linear_1.weight.mul_(loudness)
    return transformer
