"""Real diffusers pipelines of the published topologies, tiny in width, in float64, with random weights that listen to the text."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from neuroscope import HookGraph, NeuronMask, Neurons
from neuroscope.pipeline.doctor import diagnose
from neuroscope.testbed import captions, world
from neuroscope.testbed.architectures import WIDTH, build_autoencoder, build_clip
from neuroscope.testbed.construction.pipelines import build_unplanted, generation_of
from neuroscope.testbed.vocabulary import build_tokenizer

#: The noise schedule of Stable Diffusion's published checkpoints.
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
LOUDER = 3.0  # random UNets hardly listen to their prompt
PROMPT = "a red circle in the style of plain"
OTHER = "a blue star in the style of stipple"


def copied(make: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a pipeline once a process, and gives a copy of it each time, which a test may spoil."""
    made = functools.cache(make)

    @functools.wraps(make)
    def copy(*settings: Any, **named: Any) -> Any:
        return deepcopy(made(*settings, **named))

    return copy


@copied
def sd1(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion v1: 16 cross-attention layers, convolutions around them, and padding with the end-of-text token."""
    return _pipeline(seed, _tokenizer(), DDIMScheduler(**SCHEDULE), attention_head_dim=4)


@copied
def shallow(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion v1 with 7 layers, for laws that do not depend on depth."""
    cross = {
        "down_block_types": ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
    }
    return _pipeline(seed, _tokenizer(), DDIMScheduler(**SCHEDULE), **cross, block_out_channels=[32] * 3, layers_per_block=1)


@copied
def sd2(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion v2: linear projections around the layers, heads per block, velocities, and padding with '!'."""
    tokenizer = _tokenizer()
    tokenizer.pad_token = "!"
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction")
    return _pipeline(seed, tokenizer, scheduler, attention_head_dim=[2, 4, 8, 8], use_linear_projection=True)


def exact(pipe: Any) -> Any:
    """The pipeline in float64: what two computations have in common must not depend on a processor's order of additions."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.double()
    return pipe


def _unplanted(name: str) -> Any:
    return exact(build_unplanted(name, 0))


def joint(name: str) -> Any:
    """A pipeline whose blocks rewrite the text, whose prompts have few tokens."""
    return exact(with_length(build_unplanted(name, 0), 24))


_BUILT = ("sdxl", "if-1", "if-2", "pixart", "sana", "audioldm2", "stable-audio", "hunyuandit", "ltx", "wan", "animatediff")
PIPELINES = {"sd1": sd1, "sd2": sd2} | {name: partial(_unplanted, name) for name in _BUILT}
#: Those whose blocks rewrite the text have laws of their own, see test_joint.py, beside those of all families.
JOINT = {name: partial(joint, name) for name in ("sd3", "flux", "chroma", "qwen")}


def prefix(name: str) -> Any:
    """A pipeline whose text is a prefix that depends on the prompt alone, whose prompts have few tokens."""
    pipe = exact(build_unplanted(name, 0))
    pipe.processor.tokenizer.model_max_length = 24 + pipe._drop_idx
    return pipe


#: Those in which text and image are one sequence, and the text depends on the prompt alone, have laws in test_qwen21.py.
PREFIX = {"qwen21": partial(prefix, "qwen21")}


def build_unet(**config: Any) -> UNet2DConditionModel:
    """A UNet of the SD-v1 topology, 32 channels wide, in float64; further keywords change its config."""
    published = {
        "sample_size": 8,
        "block_out_channels": [32] * 4,
        "norm_num_groups": 8,
        "layers_per_block": 2,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    return UNet2DConditionModel(**(published | config)).double()


def with_parts(pipe: StableDiffusionPipeline, **parts: Any) -> StableDiffusionPipeline:
    """A pipeline that shares a pipeline's parts, apart from those given."""
    changed = StableDiffusionPipeline(**(pipe.components | parts), requires_safety_checker=False)
    changed.set_progress_bar_config(disable=True)
    return changed


def with_length(pipe: Any, tokens: int) -> Any:
    """The pipeline with another default of `max_sequence_length`, so that its prompts have fewer tokens."""
    kind = type(pipe)
    signature = inspect.signature(kind.__call__)
    changed = [each.replace(default=tokens) if name == "max_sequence_length" else each for name, each in signature.parameters.items()]

    def call(self: Any, *args: Any, **options: Any) -> Any:
        return kind.__call__(self, *args, **({"max_sequence_length": tokens} | options))

    call.__signature__ = signature.replace(parameters=changed)
    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return pipe


def draw(pipe: Any, prompts: str | Sequence[str] = PROMPT, seed: int = 0, **options: Any) -> Tensor:
    """The final latents of a short run; each prompt starts from noise of its own seed."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if isinstance(negative := options.get("negative_prompt"), str):
        options["negative_prompt"] = [negative] * len(prompts)
    images = options.get("num_images_per_prompt", 1) * len(prompts)
    noise = [torch.Generator().manual_seed(seed + row) for row in range(images)]
    return pipe(prompts, generator=noise, **({"num_inference_steps": 2} | of_pixels(pipe, len(prompts)) | options))[0]


def of_pixels(pipe: Any, prompts: int) -> dict[str, Any]:
    """What a pipeline calls final latents, and what it needs besides to make small images."""
    if getattr(pipe, "vae", None) is not None:
        of_images = hasattr(pipe, "image_processor") and hasattr(pipe, "transformer")
        side = 64 if "HunyuanDiT" in type(pipe).__name__ else 32
        small = {"height": side, "width": side} if of_images else {}
        binned = "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters
        small |= {"use_resolution_binning": False} if binned else {}
        time = getattr(pipe, "vae_scale_factor_temporal", None) or getattr(pipe, "vae_temporal_compression_ratio", None)
        small |= {"height": 32, "width": 32, "num_frames": time + 1} if time else {}
        small |= {"height": 32, "width": 32, "num_frames": 2} if hasattr(pipe, "motion_adapter") else {}
        return {"output_type": "latent"} | small
    options = generation_of("if-2" if hasattr(pipe, "image_noising_scheduler") else "if-1")
    if "image" in options:
        options["image"] = options["image"].expand(prompts, -1, -1, -1)
    del options["num_inference_steps"], options["guidance_scale"]
    return options | {"output_type": "pt"}


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """The batch size of each of a module's calls inside the block."""
    calls: list[int] = []

    def count(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(len(args[0] if args else next(iter(kwargs.values()))))

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def stopping(module: nn.Module, calls: int) -> Iterator[None]:
    """Interrupts the run inside the block, as a kill would, when a module is called once more than so often."""
    left = iter(range(calls))

    def stop(_module: nn.Module, _args: tuple) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    handle = module.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def hooks(pipe: Any) -> list[str]:
    """The names of a pipeline's modules that carry a forward hook."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    modules = ((f"{name}.{path}", module) for name, part in parts.items() for path, module in part.named_modules())
    return [path for path, module in modules if module._forward_hooks or module._forward_pre_hooks]


def _tokenizer() -> CLIPTokenizer:
    return build_tokenizer(captions.corpus(world.scenes(held_out=False)))


def _pipeline(seed: int, tokenizer: CLIPTokenizer, scheduler: Any, **config: Any) -> StableDiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder, vae, unet = build_clip(tokenizer).text_model, build_autoencoder(), build_unet(**config)
    with torch.no_grad():
        for path, module in unet.named_modules():
            if path.endswith(("attn2.to_k", "attn2.to_v", "attn2.to_out.0")):
                module.weight.copy_(LOUDER * module.weight.float())  # so that float32 holds all weights exactly
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return exact(pipe)


def mask(graph: HookGraph, rows: str = "conditional", layer: int = 8) -> NeuronMask:
    """A change of a few values of one layer that every image shows."""
    (site,) = graph.sites.where(layer=layer, role="value")
    return NeuronMask(Neurons.at(graph.sites, {site.path: range(8)}), fill=2.0, rows=rows)


def wrong(pipe: Any) -> list[str]:
    """What the doctor finds wrong, by name."""
    return [finding.name for finding in diagnose(pipe) if finding.state == "wrong"]
