"""Pipelines of published width, with random weights, for measuring cost."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import neuroscope as ns
from benchmarks.topologies import SD_V1


def stable_diffusion_v1() -> StableDiffusionPipeline:
    """SD-v1 at its real width (860 million weights in the UNet), random, with the testbed's tokenizer and autoencoder."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ns.testbed.path("sd1") / "tokenizer")
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    text.max_position_embeddings = tokenizer.model_max_length
    text.bos_token_id, text.eos_token_id, text.pad_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    unet = UNet2DConditionModel(**SD_V1)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(ns.testbed.path("sd1") / "vae"),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler.from_pretrained(ns.testbed.path("sd1") / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
