"""The memory that `rank` takes at Stable Diffusion v1's published width, on random weights, for latents of an image of 512 x 512.

    python -m benchmarks.rank_memory --dtype bfloat16

Prints the peak of the whole process, weights included.
"""

import argparse
import time

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import neuroscope as ns
from neuroscope.testbed.architectures import build_autoencoder

PROMPTS = ("a red circle in the style of stipple", "a red circle in the style of plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    asked = parser.parse_args()
    graph = ns.HookGraph(published_width(getattr(torch, asked.dtype)))
    concept = ns.Concept("stipple", [PROMPTS[0]], [PROMPTS[1]])
    begun = time.monotonic()
    size = {"height": 64 * graph.pipe.vae_scale_factor, "width": 64 * graph.pipe.vae_scale_factor}
    method = ns.NeuronGradient(samples=asked.samples, recompute=asked.recompute)
    scores = ns.rank(graph, concept, method, batch_size=1, num_inference_steps=20, **size)
    print(f"{graph}\n{asked.dtype}, recompute={asked.recompute}: {scores.cost}, {time.monotonic() - begun:.0f} s in all")


def published_width(dtype: torch.dtype) -> StableDiffusionPipeline:
    """Stable Diffusion v1 with its published UNet and text encoder, but for the words that the tokenizer knows."""
    torch.manual_seed(0)
    tokenizer = ns.testbed.load("sd1").tokenizer
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **words)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    parts = {"unet": unet.to(dtype), "text_encoder": CLIPTextModel(text).to(dtype), "vae": build_autoencoder().to(dtype)}
    return StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


if __name__ == "__main__":
    main()
