"""Random pipelines that make videos: real classes, shallow, small in width."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5EncoderModel

from neuroscope.testbed.construction.builders.encoders import t5, t5_encoder, t5_tokenizer

_WIDTH = 64
_LOUD = 4.0


def ltx() -> LTXPipeline:
    """LTX-Video, shallow: 12 blocks that cross-attend under the prompt's mask, normed keys, T5, latents as one row of patches."""
    tokenizer, text_encoder = t5(_WIDTH)
    blocks = dict.fromkeys(("block_out_channels", "decoder_block_out_channels"), (16, 16))
    once = dict.fromkeys(("layers_per_block", "decoder_layers_per_block"), (1, 1, 1))
    scaled = dict.fromkeys(("spatio_temporal_scaling", "decoder_spatio_temporal_scaling"), (True, False))
    plain = {"decoder_inject_noise": (False,) * 3, "upsample_residual": (False,) * 2, "upsample_factor": (1,) * 2}
    kinds = {"down_block_types": ("LTXVideoDownBlock3D",) * 2, "downsample_type": ("conv",) * 2}
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=6,
        attention_head_dim=16,
        cross_attention_dim=96,
        num_layers=12,
        caption_channels=_WIDTH,
    )
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLLTXVideo(latent_channels=8, **blocks, **once, **scaled, **plain, **kinds),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def wan() -> WanPipeline:
    """Wan 2.1, shallow: 12 blocks that cross-attend to all of 512 tokens, normed keys, UMT5, guidance in two calls a step."""
    tokenizer = t5_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer, _WIDTH, UMT5EncoderModel, layers=2, heads=2),
        vae=AutoencoderKLWan(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=_wan_transformer(),
    )


def _wan_transformer() -> WanTransformer3DModel:
    """Its keys are loud, or words would be lost among the padding."""
    transformer = WanTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=6,
        attention_head_dim=16,
        num_layers=12,
        text_dim=_WIDTH,
        freq_dim=32,
        ffn_dim=4 * 96,
    )
    for block in transformer.blocks:
        torch.nn.init.constant_(block.attn2.norm_k.weight, _LOUD)
    return transformer
