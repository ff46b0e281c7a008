"""Random pipelines of transformers that cross-attend: real classes, shallow, small in width."""

from __future__ import annotations

import inspect

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    SanaPipeline,
    SanaTransformer2DModel,
)

from neuroscope.testbed.construction.builders.encoders import bert, gemma, t5_encoder, t5_tokenizer


def sana() -> SanaPipeline:
    """Sana, shallow: 12 blocks of linear self-attention, Gemma behind an instruction, a deep-compression autoencoder, flow matching."""
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    tokenizer, text_encoder = gemma(64, "\n".join(instruction))
    blocks = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (16, 32, 32))
    once = dict.fromkeys(("encoder_layers_per_block", "decoder_layers_per_block"), (1, 1, 1))
    plain = dict.fromkeys(("encoder_qkv_multiscales", "decoder_qkv_multiscales"), ((), (), ()))
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=6,
        attention_head_dim=16,
        num_layers=12,
        num_cross_attention_heads=4,
        cross_attention_head_dim=24,
        cross_attention_dim=96,
        caption_channels=64,
        sample_size=32,
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.41407, **blocks, **once, **plain),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def hunyuandit() -> HunyuanDiTPipeline:
    """HunyuanDiT, shallow: 12 blocks with skips that attend to BERT and T5 one behind the other, T5 pooled, learned variance."""
    channels, width = 192, 64  # four pairs of prompts in two encoders leave room for what they share
    tokenizer, text_encoder = bert(channels)
    words = t5_tokenizer()
    transformer = HunyuanDiT2DModel(
        num_attention_heads=6,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=96,
        num_layers=12,
        cross_attention_dim=channels,
        cross_attention_dim_t5=width,
        pooled_projection_dim=48,
    )
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return HunyuanDiTPipeline(
        vae=AutoencoderKL(**blocks, block_out_channels=[16] * 4, latent_channels=4, norm_num_groups=8),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(words, width),
        tokenizer_2=words,
    )
