"""Random pipelines whose blocks rewrite the text: real classes, shallow, small in width."""

from __future__ import annotations

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
from transformers import CLIPTextModelWithProjection

from neuroscope.testbed.architectures import build_autoencoder
from neuroscope.testbed.construction.encoders import clip, clip_tokenizer, qwen, t5

_BLOCKS = 12
_TEXT, _POOLED = 64, 48
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


def hold_text(denoiser: Any) -> None:
    """Lets no block rewrite the text, nor tell it the step, so that the keys and values of a block depend on the prompt alone."""
    for block in denoiser.transformer_blocks:
        block.norm1_context.linear.weight.data.zero_()
        for writer in (block.attn.to_add_out, block.ff_context and block.ff_context.net[2]):
            if writer is not None:
                writer.weight.data.zero_()
                writer.bias.data.zero_()


def _autoencoder() -> Any:
    vae = build_autoencoder()
    vae.register_to_config(shift_factor=0.0)
    return vae


def _with_pooled_text(transformer: Any, loudness: float) -> Any:
    with torch.no_grad():
        transformer.time_text_embed.text_embedder.linear_1.weight.mul_(loudness)
    return transformer
