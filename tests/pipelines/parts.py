"""The parts of tiny diffusers pipelines: real classes, four layers, random weights that listen to their text."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    PixArtTransformer2DModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from PIL.Image import Image, fromarray
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

from neuroscope.testbed import captions, world
from neuroscope.testbed.construction.builders.words import build_t5_tokenizer
from neuroscope.testbed.vocabulary import build_tokenizer
from tests.families.tiny import LOUDER, SCHEDULE

SIZE = 32  # pixels; the autoencoder halves them twice
LATENTS = SIZE // 4
PIXELS = 16  # of models without an autoencoder
WIDTH = 32  # channels of a text encoder
_CHANNELS = (16, 32)
_LISTENING = re.compile(r".+(attn2\.to_[kv]|attn2\.to_out\.0|add_[kv]_proj|attentions\.\d+\.to_out\.0)")
_ENCODER = {"intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": WIDTH}


def drawn(build: Callable[[], Any]) -> Any:
    """What `build` makes from seed 0, in evaluation mode, with a denoiser that listens to its text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = build()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    for path, module in denoiser.named_modules():
        if _LISTENING.fullmatch(path):
            module.weight.data.mul_(LOUDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of the rendered world's captions; do not change it."""
    return build_tokenizer(captions.corpus(world.scenes(held_out=False)))


@functools.cache
def _t5_tokenizer() -> Any:
    return build_t5_tokenizer(captions.corpus(world.scenes(held_out=False)))


def clip(kind: Any = CLIPTextModel, **config: Any) -> Any:
    """A CLIP text encoder of two layers."""
    words = tokenizer()
    special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    lengths = {"vocab_size": len(words), "max_position_embeddings": words.model_max_length}
    return kind(CLIPTextConfig(**_ENCODER, **lengths, **special, **config))


def autoencoder(**config: Any) -> AutoencoderKL:
    """An autoencoder of three levels, so that latents have a quarter of the pixels' height and width."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 8],
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIZE,
        force_upcast=False,
        **config,
    )


def unet(**config: Any) -> UNet2DConditionModel:
    """A UNet with four cross-attention layers; keywords change its config."""
    plain = {
        "sample_size": LATENTS,
        "block_out_channels": _CHANNELS,
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    return UNet2DConditionModel(**(plain | config))


def control_net(**config: Any) -> ControlNetModel:
    """A control net that reads the prompt and acts: its zero convolutions are filled."""
    net = ControlNetModel(
        block_out_channels=_CHANNELS,
        norm_num_groups=8,
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        conditioning_embedding_out_channels=(8, 8, 16),
        **({"cross_attention_dim": WIDTH} | config),
    )
    for module in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        nn.init.normal_(module.weight, std=0.2)
    return net


def adapter() -> T2IAdapter:
    """A T2I adapter for three-channel images."""
    return T2IAdapter(in_channels=3, channels=list(_CHANNELS), num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter")


def ddim(**config: Any) -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(**SCHEDULE, **config)


def stable_diffusion(kind: Any, *, scheduler: Any = None, unet_config: dict[str, Any] | None = None, **parts: Any) -> Any:
    """A pipeline of Stable Diffusion's parts; keywords replace or add parts."""
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    given = {
        "vae": autoencoder(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(),
        "unet": unet(**(unet_config or {})),
        "scheduler": scheduler or ddim(),
        **{name: value for name, value in optional.items() if name in kind.__init__.__code__.co_varnames},
    }
    return kind(**(given | parts))


def sdxl_unet(**config: Any) -> UNet2DConditionModel:
    """A UNet that reads two encoders side by side, their pooled text and the sizes."""
    pooled, sizes, numbers = WIDTH, 8, config.pop("numbers", 6)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": sizes}
    return unet(cross_attention_dim=2 * WIDTH, projection_class_embeddings_input_dim=pooled + numbers * sizes, **added, **config)


def sdxl_control_net() -> ControlNetModel:
    """A control net for `sdxl_unet`."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return control_net(cross_attention_dim=2 * WIDTH, projection_class_embeddings_input_dim=WIDTH + 6 * 8, **added)


def sdxl(kind: Any, *, unet_config: dict[str, Any] | None = None, scheduler: Any = None, **parts: Any) -> Any:
    """A pipeline of Stable Diffusion XL's parts; keywords replace or add parts."""
    optional = {"add_watermarker": False, "requires_aesthetics_score": False}
    given = {
        "vae": autoencoder(),
        "text_encoder": clip(),
        "text_encoder_2": clip(CLIPTextModelWithProjection, projection_dim=WIDTH),
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(),
        "unet": sdxl_unet(**(unet_config or {})),
        "scheduler": scheduler or ddim(),
        **{name: value for name, value in optional.items() if name in kind.__init__.__code__.co_varnames},
    }
    return kind(**(given | parts))


def deepfloyd(kind: Any, *, enlarges: bool = False) -> Any:
    """A pipeline of DeepFloyd IF's parts: stage I, or a stage that enlarges images."""
    noise = {"beta_schedule": "squaredcos_cap_v2"}
    parts = {"image_noising_scheduler": DDPMScheduler(**noise)} if enlarges else {}
    return kind(
        **_t5(),
        unet=_deepfloyd_unet(enlarges),
        scheduler=DDPMScheduler(**noise, variance_type="learned_range", thresholding=True),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
        **parts,
    )


def pixart(kind: Any, *, sized: bool = False, **parts: Any) -> Any:
    """A pipeline of PixArt's parts; `sized` as of images of 1024 pixels, whose model may be told the size."""
    transformer = PixArtTransformer2DModel(
        sample_size=128 if sized else LATENTS,
        num_layers=4,
        num_attention_heads=3,
        attention_head_dim=16,
        cross_attention_dim=48,
        caption_channels=WIDTH,
    )
    return kind(**_t5(), vae=autoencoder(), transformer=transformer, scheduler=ddim(), **parts)


def _t5() -> dict[str, Any]:
    words = _t5_tokenizer()
    shape = {"d_model": WIDTH, "d_kv": 8, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    special = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    return {"tokenizer": words, "text_encoder": T5EncoderModel(T5Config(vocab_size=len(words), **shape, **special))}


def _deepfloyd_unet(enlarges: bool) -> UNet2DConditionModel:
    stage = {"in_channels": 6, "class_embed_type": "timestep"} if enlarges else {"in_channels": 3}
    return unet(
        sample_size=PIXELS,
        out_channels=6,
        act_fn="gelu",
        block_out_channels=_CHANNELS,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        cross_attention_dim=2 * WIDTH,
        cross_attention_norm="group_norm",
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        down_block_types=["SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"],
        up_block_types=["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"],
        resnet_time_scale_shift="scale_shift",
        **stage,
    )


@functools.cache
def image(size: int = SIZE, shift: int = 0) -> Image:
    """An image of a colour gradient."""
    across = torch.linspace(0, 255, size)
    rgb = torch.stack([across.expand(size, size), across[:, None].expand(size, size), torch.full((size, size), 80.0)], dim=-1)
    return fromarray(rgb.roll(shift, dims=0).byte().numpy(), mode="RGB")


@functools.cache
def mask_image(size: int = SIZE) -> Image:
    """An image whose lower half is white."""
    half = torch.zeros(size, size, dtype=torch.uint8)
    half[size // 2 :] = 255
    return fromarray(half.numpy(), mode="L")


def depth() -> Tensor:
    """A depth map [1, height, width]."""
    return torch.linspace(0, 1, SIZE).expand(1, SIZE, SIZE).clone()
