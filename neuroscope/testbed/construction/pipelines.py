"""Random pipelines of every family: real classes, published topologies, small widths, and weights that listen to the text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    MotionAdapter,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from neuroscope.testbed.architectures import build_autoencoder
from neuroscope.testbed.construction.builders.audio import audioldm2, stable_audio
from neuroscope.testbed.construction.builders.encoders import clip, clip_tokenizer, t5
from neuroscope.testbed.construction.builders.joint import chroma, flux, qwen_image, sd3
from neuroscope.testbed.construction.builders.prefix import qwen_image_21
from neuroscope.testbed.construction.builders.transformers import hunyuandit, sana
from neuroscope.testbed.construction.builders.videos import ltx, wan

#: How much larger than at random the weights around the text are, because random denoisers hardly listen to their prompt.
LOUDER = 3.0
_TEXT_SIDE = re.compile(r"(?!.*motion_modules).+(attn2\.to_[kv]|attn2\.to_out\.0|add_[kv]_proj|attentions\.\d+\.to_out\.0)")
WIDTH = 32
#: The families that make videos, and of how many frames: two in their latents.
VIDEOS = {"animatediff": 2, "ltx": 3, "wan": 5}
_STABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_IF_NOISE: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "thresholding": True}


def sd1() -> StableDiffusionPipeline:
    """Stable Diffusion v1: 16 layers, one CLIP text encoder whose prompts are padded with the end-of-text token."""
    tokenizer = clip_tokenizer()
    scheduler = DDIMScheduler(**_STABLE, clip_sample=False, set_alpha_to_one=False)
    return _stable_diffusion(tokenizer, clip(tokenizer, 96), scheduler, cross_attention_dim=96, attention_head_dim=4)


def openjourney() -> StableDiffusionPipeline:
    """OpenJourney, a fine-tune of Stable Diffusion v1.5: its architecture, other weights, and its PNDM scheduler."""
    pipe = sd1()
    pipe.register_modules(scheduler=PNDMScheduler(**_STABLE, skip_prk_steps=True, set_alpha_to_one=False))
    return pipe


def sd2() -> StableDiffusionPipeline:
    """Stable Diffusion v2: wider text padded with "!", linear projections, heads per block, and predictions of velocity."""
    tokenizer = clip_tokenizer(padding="!")
    scheduler = DDIMScheduler(**_STABLE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")
    config = {"cross_attention_dim": 128, "attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True}
    return _stable_diffusion(tokenizer, clip(tokenizer, 128), scheduler, **config)


def animatediff() -> AnimateDiffPipeline:
    """AnimateDiff: Stable Diffusion v1's layers, and a motion module behind each pair of a convolution block and a layer."""
    parts = sd1().components
    motion = MotionAdapter(block_out_channels=(WIDTH,) * 4, motion_num_attention_heads=4, motion_norm_num_groups=8)
    scheduler = DDIMScheduler(**(_STABLE | {"beta_schedule": "linear"}), clip_sample=False)
    chosen = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet")}
    return AnimateDiffPipeline(**chosen, motion_adapter=motion, scheduler=scheduler)


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: 70 layers, two text encoders side by side, and pooled text and sizes in the time embedding."""
    tokenizer, other = clip_tokenizer(), clip_tokenizer(padding="!")
    pooled, sizes = 48, 8
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=[WIDTH] * 3,
        norm_num_groups=8,
        cross_attention_dim=64 + 96,
        attention_head_dim=[2, 4, 8],
        transformer_layers_per_block=[1, 2, 10],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=sizes,
        projection_class_embeddings_input_dim=pooled + 6 * sizes,
    )
    return StableDiffusionXLPipeline(
        vae=build_autoencoder(),
        text_encoder=clip(tokenizer, 64),
        text_encoder_2=clip(other, 96, CLIPTextModelWithProjection, projection_dim=pooled),
        tokenizer=tokenizer,
        tokenizer_2=other,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_STABLE, timestep_spacing="leading"),
        add_watermarker=False,
    )


def deepfloyd_1() -> IFPipeline:
    """DeepFloyd IF, stage I: 22 layers with added text keys and values, a T5 text encoder, pixels, learned variance."""
    return IFPipeline(
        **_deepfloyd(sample_size=8, in_channels=3, layers_per_block=3, **_if_blocks(1, 3)), scheduler=DDPMScheduler(**_IF_NOISE)
    )


def deepfloyd_2() -> IFSuperResolutionPipeline:
    """DeepFloyd IF, stage II: 23 layers, given a small image and the noise put on it."""
    config = {"sample_size": 16, "in_channels": 6, "class_embed_type": "timestep", "resnet_skip_time_act": True}
    config |= {"mid_block_scale_factor": 2**0.5, "resnet_out_scale_factor": 2**0.5, "layers_per_block": [2, 2, 3, 5, 5]}
    return IFSuperResolutionPipeline(
        **_deepfloyd(**config, **_if_blocks(3, 2)),
        scheduler=DDPMScheduler(**_IF_NOISE),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )


def pixart() -> PixArtAlphaPipeline:
    """PixArt-α, shallow: 16 transformer blocks, a T5 text encoder whose prompts have a mask, learned variance."""
    tokenizer, text_encoder = t5(64)
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=16,
        num_attention_heads=6,
        attention_head_dim=16,
        cross_attention_dim=96,
        caption_channels=64,
    )
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    return PixArtAlphaPipeline(tokenizer, text_encoder, build_autoencoder(), transformer, scheduler)


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd1": sd1,
    "sd2": sd2,
    "openjourney": openjourney,
    "sdxl": sdxl,
    "if-1": deepfloyd_1,
    "if-2": deepfloyd_2,
    "pixart": pixart,
    "sana": sana,
    "audioldm2": audioldm2,
    "stable-audio": stable_audio,
    "hunyuandit": hunyuandit,
    "ltx": ltx,
    "wan": wan,
    "animatediff": animatediff,
    "sd3": sd3,
    "flux": flux,
}
#: Families in which nothing is planted.
_UNPLANTED: dict[str, Callable[[], Any]] = {"chroma": chroma, "qwen": qwen_image, "qwen21": qwen_image_21}


def build_unplanted(family: str, seed: int) -> Any:
    """A random pipeline of a family, in which every layer and the pooled text listen to the prompt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = (BUILDERS | _UNPLANTED)[family]()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    for path, module in denoiser_of(pipe).named_modules():
        if _TEXT_SIDE.fullmatch(path):
            module.weight.data.mul_(LOUDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser_of(pipe: Any) -> Any:
    """A pipeline's denoiser."""
    return getattr(pipe, component_of(pipe))


def component_of(pipe: Any) -> str:
    """The pipeline's attribute that holds its denoiser."""
    return "unet" if hasattr(pipe, "unet") else "transformer"


def generation_of(family: str) -> dict[str, Any]:
    """The pipeline's options for a short run of small images."""
    short = {"num_inference_steps": 2, "guidance_scale": 1.0}
    if family == "if-2":
        rows = torch.linspace(-1, 1, 8).expand(1, 3, 8, 8).clone()
        return short | {"height": 16, "width": 16, "image": rows, "noise_level": 100, "clean_caption": False}
    if family == "if-1":
        return short | {"height": 8, "width": 8, "clean_caption": False}
    if family in ("audioldm2", "stable-audio"):
        return short
    if family in VIDEOS:
        return short | {"height": 32, "width": 32, "num_frames": VIDEOS[family]}
    if family == "hunyuandit":
        return short | {"height": 64, "width": 64, "use_resolution_binning": False}
    if family in ("pixart", "sana"):
        short |= {"clean_caption": False, "use_resolution_binning": False}
    return short | {"height": 32, "width": 32}


def _stable_diffusion(tokenizer: CLIPTokenizer, text_encoder: Any, scheduler: Any, **config: Any) -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=[WIDTH] * 4,
        norm_num_groups=8,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        **config,
    )
    return StableDiffusionPipeline(
        vae=build_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _if_blocks(plain: int, attending: int) -> dict[str, Any]:
    return {
        "block_out_channels": [WIDTH] * (plain + attending),
        "down_block_types": ["ResnetDownsampleBlock2D"] * plain + ["SimpleCrossAttnDownBlock2D"] * attending,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * attending + ["ResnetUpsampleBlock2D"] * plain,
    }


def _deepfloyd(**config: Any) -> dict[str, Any]:
    text = 64
    unet = UNet2DConditionModel(
        out_channels=6,
        act_fn="gelu",
        norm_num_groups=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
        attention_head_dim=8,
        cross_attention_dim=512,  # four pairs of 77 tokens leave room for what they share
        cross_attention_norm="group_norm",
        encoder_hid_dim=text,
        encoder_hid_dim_type="text_proj",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        **config,
    )
    tokenizer, text_encoder = t5(text)  # drawn after the UNet, or a seed would give another pipeline
    parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet}
    return parts | {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
