"""Random pipelines that make videos: real classes, shallow, small in width."""

from __future__ import annotations

from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

from neuroscope.testbed.construction.encoders import t5

_WIDTH = 64


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
