"""Peak memory of an edge sweep at FLUX's real width, on random weights, against the bare model on as many images; a process each.

OMP_NUM_THREADS=2 python -m benchmarks.joint_memory     (`--dtype bfloat16`, `--images 5`, `--text 512`)

One joint and one single block of FLUX.1's width (3,072 in 24 heads), 64 tokens of an image; the text encoders are small. The images of a
batch are both ends of a sweep, the pooled text alone and a window of each block. Fails above 1.3 times the bare model's peak.
"""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

import neuroscope as ns
from benchmarks.own_process import in_own_process, peak_memory
from neuroscope.core.errors import counted
from neuroscope.testbed.architectures import build_autoencoder
from neuroscope.testbed.construction.builders.encoders import clip, clip_tokenizer, t5

BOUND = 1.3
STEPS, SEED = 1, 0
PROMPTS = ("a red circle in the style of stipple", "a red circle in the style of plain")
_HEADS, _HEAD, _TEXT, _POOLED = 24, 128, 64, 768
_LATENTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--images", type=int, default=5, help="of a batch; a whole sweep of one prompt and seed is 5")
    parser.add_argument("--text", type=int, default=512, help="tokens of a prompt")
    asked = parser.parse_args()
    given = f"{asked.dtype!r}, {asked.images}, {asked.text}"
    peaks = {job: in_own_process("benchmarks.joint_memory", f"measure({job!r}, {given})") for job in ("load", "bare", "sweep")}
    ratio = peaks["sweep"] / peaks["bare"]
    above = (peaks["sweep"] - peaks["load"]) / (peaks["bare"] - peaks["load"])
    print(f"{asked.dtype}, {counted(asked.images, 'image')}, {counted(asked.text, 'token')} of text; peak memory of the process, MiB:")
    print(", ".join(f"{job} {peak:,.0f}" for job, peak in peaks.items()))
    print(f"sweep over bare {ratio:.3f}; above what loading takes {above:.3f}")
    if ratio > BOUND:
        raise AssertionError(f"{ratio:.3f} times the bare model's peak, and {BOUND} are allowed")


def measure(job: str, dtype: str, images: int, text: int) -> float:
    """The peak memory of this process after a job, MiB: "load", "bare" images or a "sweep"."""
    pipe = real_width(getattr(torch, dtype), text)
    size = dict.fromkeys(("height", "width"), _LATENTS * pipe.vae_scale_factor) | {"num_inference_steps": STEPS}
    if job == "bare":
        prompts = [PROMPTS[number % 2] for number in range(images)]
        noise = [torch.Generator().manual_seed(SEED) for _ in prompts]
        pipe(prompts, generator=noise, output_type="latent", **size)
    elif job == "sweep":
        concept = ns.Concept("stipple", [PROMPTS[0]], [PROMPTS[1]])
        graph, metric = ns.HookGraph(pipe), ns.LatentShare()
        ns.localize(graph, concept, ns.LocoGen(), metric, [SEED], batch_size=images, keep_images=0, quiet=True, **size)
    return peak_memory()


def real_width(dtype: torch.dtype, text: int) -> Any:
    """FLUX.1 dev of its published width, with one block of each kind and small encoders."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    words, encoder = t5(_TEXT)
    transformer = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=_HEADS,
        attention_head_dim=_HEAD,
        in_channels=16,
        joint_attention_dim=_TEXT,
        pooled_projection_dim=_POOLED,
        guidance_embeds=True,
    )
    vae = build_autoencoder()
    vae.register_to_config(shift_factor=0.0)
    parts = {"vae": vae, "text_encoder": clip(tokenizer, _POOLED), "text_encoder_2": encoder, "transformer": transformer}
    made = {name: part.to(dtype).eval().requires_grad_(False) for name, part in parts.items()}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = _with_text(text)(scheduler=scheduler, tokenizer=tokenizer, tokenizer_2=words, **made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _with_text(tokens: int) -> type[FluxPipeline]:
    """The pipeline's class, whose prompts have so many tokens."""
    signature = inspect.signature(FluxPipeline.__call__)

    def call(self: Any, *args: Any, **options: Any) -> Any:
        return FluxPipeline.__call__(self, *args, **({"max_sequence_length": tokens} | options))

    parameters = [each.replace(default=tokens) if name == "max_sequence_length" else each for name, each in signature.parameters.items()]
    vars(call)["__signature__"] = signature.replace(parameters=parameters)
    return type("FluxPipeline", (FluxPipeline,), {"__call__": call})


if __name__ == "__main__":
    main()
