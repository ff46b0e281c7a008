"""The published denoisers' configs: what differs from diffusers' defaults.

From the checkpoints' own `unet/config.json`. Of DeepFloyd's two files the last lines were completed by inference; their numbers of
weights match the advertised sizes.
"""

from __future__ import annotations

from typing import Any

SD_V1: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD_V2 = SD_V1 | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
IF_I_XL: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "block_out_channels": [704, 1408, 2112, 2816],
    "cross_attention_dim": 2816,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
}
IF_II_L = IF_I_XL | {
    "sample_size": 256,
    "in_channels": 6,
    "class_embed_type": "timestep",
    "block_out_channels": [160, 320, 640, 960, 1280],
    "cross_attention_dim": 1280,
    "layers_per_block": [2, 2, 3, 5, 5],
    "mid_block_scale_factor": 2**0.5,
    "resnet_out_scale_factor": 2**0.5,
    "resnet_skip_time_act": True,
    "down_block_types": ["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"] * 2,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"] * 3,
}
#: PixArt of 1024 pixels, as diffusers' scripts/convert_pixart_alpha_to_diffusers.py and convert_pixart_sigma_to_diffusers.py make it; the
#: class had another name then. PixArt-Σ is not told the image's size.
PIXART: dict[str, Any] = {
    "_class_name": "Transformer2DModel",
    "norm_type": "ada_norm_single",
    "sample_size": 128,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "attention_bias": True,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
PIXART_SIGMA = PIXART | {"use_additional_conditions": False, "interpolation_scale": 2}

#: AudioLDM 2, as huggingface.co/cvssp/audioldm2 has it in unet/config.json: 346.9 million weights.
AUDIOLDM2: dict[str, Any] = {
    "_class_name": "AudioLDM2UNet2DConditionModel",
    "sample_size": 256,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": [128, 256, 384, 640],
    "cross_attention_dim": [[None, 768, 1024]] * 4,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
}
#: Stable Audio Open: diffusers' defaults of the class, which are the published ones.
STABLE_AUDIO: dict[str, Any] = {"_class_name": "StableAudioDiTModel"}
#: AnimateDiff's motion modules in Stable Diffusion v1: the class's defaults, but for the width of CLIP's states.
ANIMATEDIFF: dict[str, Any] = {"_class_name": "UNetMotionModel", "sample_size": 64, "cross_attention_dim": 768}
#: LTX-Video of 2 thousand million weights: diffusers' scripts/convert_ltx_to_diffusers.py makes it with the class's defaults.
LTX: dict[str, Any] = {"_class_name": "LTXVideoTransformer3DModel"}
#: HunyuanDiT 1.1, by the number of blocks in diffusers' scripts/convert_hunyuandit_to_diffusers.py (40) and otherwise the class's defaults,
#: with the patches and latents of the original code (patches of 2, latents of 4 channels). Version 1.2 is not told the image's size.
HUNYUANDIT: dict[str, Any] = {
    "_class_name": "HunyuanDiT2DModel",
    "num_layers": 40,
    "hidden_size": 1408,
    "mlp_ratio": 4.3637,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 128,
}
HUNYUANDIT_1_2 = HUNYUANDIT | {"use_style_cond_and_image_meta_size": False}
#: Wan 2.1 of 1.3 and 14 thousand million weights, as diffusers' scripts/convert_wan_to_diffusers.py makes them; either transformer of Wan
#: 2.2 A14B has the latter's.
WAN: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel",
    "added_kv_proj_dim": None,
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "in_channels": 16,
    "num_attention_heads": 40,
    "num_layers": 40,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "text_dim": 4096,
}
WAN_1_3B = WAN | {"ffn_dim": 8960, "num_attention_heads": 12, "num_layers": 30}
#: Sana of 1.6 and 0.6 thousand million weights, as diffusers' scripts/convert_sana_to_diffusers.py makes them.
SANA: dict[str, Any] = {
    "_class_name": "SanaTransformer2DModel",
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
SANA_600M = SANA | {
    "num_attention_heads": 36,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
#: Stable Diffusion 3 medium and 3.5 large and medium, as diffusers' scripts/convert_sd3_to_diffusers.py makes them: as many heads as
#: blocks; in 3.5 the keys are normed, and the first 13 blocks of medium have an attention of the image alone beside the joint one.
SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
SD3_5_LARGE = SD3 | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
SD3_5_MEDIUM = SD3 | {"pos_embed_max_size": 384, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"}
#: FLUX.1: diffusers' defaults of the class are schnell's (scripts/convert_flux_to_diffusers.py makes it with them), and dev is told a
#: guidance scale beside the step.
FLUX_SCHNELL: dict[str, Any] = {"_class_name": "FluxTransformer2DModel"}
FLUX_DEV = FLUX_SCHNELL | {"guidance_embeds": True}

#: Chroma1-HD: the class's defaults.
CHROMA: dict[str, Any] = {"_class_name": "ChromaTransformer2DModel"}
#: Qwen-Image of 20 thousand million weights, as huggingface.co/Qwen/Qwen-Image has it: the class's defaults.
QWEN_IMAGE: dict[str, Any] = {"_class_name": "QwenImageTransformer2DModel"}
#: Qwen-Image 2.1: the class's defaults.
QWEN_IMAGE_21: dict[str, Any] = {"_class_name": "QwenImage21Transformer2DModel"}

#: OpenJourney is a fine-tune of Stable Diffusion v1.5 and has its config.
PUBLISHED = {
    "SD v1": SD_V1,
    "SD v2": SD_V2,
    "OpenJourney": SD_V1,
    "SDXL": SDXL,
    "DeepFloyd IF-I-XL": IF_I_XL,
    "DeepFloyd IF-II-L": IF_II_L,
    "PixArt-α": PIXART,
    "PixArt-Σ": PIXART_SIGMA,
    "AudioLDM 2": AUDIOLDM2,
    "Stable Audio": STABLE_AUDIO,
    "Sana 1.6B": SANA,
    "Sana 0.6B": SANA_600M,
    "HunyuanDiT 1.1": HUNYUANDIT,
    "HunyuanDiT 1.2": HUNYUANDIT_1_2,
    "AnimateDiff": ANIMATEDIFF,
    "LTX-Video": LTX,
    "Wan 14B": WAN,
    "Wan 1.3B": WAN_1_3B,
    "SD3 medium": SD3,
    "SD3.5 large": SD3_5_LARGE,
    "SD3.5 medium": SD3_5_MEDIUM,
    "FLUX.1 dev": FLUX_DEV,
    "FLUX.1 schnell": FLUX_SCHNELL,
    "Chroma": CHROMA,
    "Qwen-Image": QWEN_IMAGE,
    "Qwen-Image 2.1": QWEN_IMAGE_21,
}
