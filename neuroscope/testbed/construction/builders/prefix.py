"""A random pipeline whose text is a prefix that no block lets read the image: real classes, shallow, small in width."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Pipeline, QwenImage21Transformer2DModel

from neuroscope.testbed.construction.builders.encoders import qwen3

_TEXT, _CHANNELS = 64, 4
#: How loud keys, values and gates are, or the text is hardly heard.
_KEYS, _VALUES, _GATES = 8.0, 3.0, 4.0
_WORDS = "system\nComprehend and analyze the provided prompt\nuser\nassistant"


def qwen_image_21() -> QwenImage21Pipeline:
    """Qwen-Image 2.1, shallow: 12 blocks over text and image in one sequence, Qwen3-VL behind a template, guidance in two calls a step."""
    processor, encoder = qwen3(_TEXT, _WORDS)
    autoencoder = AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=_CHANNELS,
        dim_mult=[1] * 5,
        num_res_blocks=1,
        temperal_downsample=[False] * 4,
        latents_mean=[0.0] * _CHANNELS,
        latents_std=[1.0] * _CHANNELS,
    )
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder,
        text_encoder=encoder,
        processor=processor,
        transformer=_transformer(),
    )


def _transformer() -> QwenImage21Transformer2DModel:
    transformer = QwenImage21Transformer2DModel(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_layers=12,
        attention_head_dim=16,
        num_attention_heads=6,
        context_in_dim=_TEXT,
        axes_dims_rope=(4, 6, 6),
    )
    with torch.no_grad():
        transformer.modulation[1].weight.mul_(_GATES)
        for block in transformer.transformer_blocks:
            block.attn.norm_k.weight.mul_(_KEYS)
            block.attn.to_v.weight.mul_(_VALUES)
    return transformer
