"""Which pipelines are refused whatever their denoiser is, and why: what the calls of their denoisers hold is not one prompt a row."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from neuroscope.core.errors import UnsupportedModel
from neuroscope.pipeline.families.encoding import NUMBERS, begin_of, missing_methods, takes_negatives

_READERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "controlnet", "adapter", "image_encoder")


@dataclass(frozen=True)
class RefusedPipeline:
    """Why a class of pipelines is refused, and which class to use on the same components ("" where there is none)."""

    reason: str
    instead: str = "StableDiffusionPipeline"


REFUSED_PIPELINES: dict[str, RefusedPipeline] = {
    "StableDiffusionPanoramaPipeline": RefusedPipeline("it denoises overlapping views of one image, several in one call"),
    "StableDiffusionSAGPipeline": RefusedPipeline("every second call of its denoiser is of a degraded image, without the prompt"),
    "StableDiffusionParadigmsPipeline": RefusedPipeline("it denoises several steps in parallel, side by side in one call"),
    "StableDiffusionAttendAndExcitePipeline": RefusedPipeline("it replaces the attention processors and moves the latents by gradients"),
    "StableDiffusionPix2PixZeroPipeline": RefusedPipeline("it inverts a source image and moves the latents by gradients"),
    "CycleDiffusionPipeline": RefusedPipeline(
        "its calls hold rows of a source prompt beside those of the prompt", "StableDiffusionImg2ImgPipeline"
    ),
    "StableDiffusionDiffEditPipeline": RefusedPipeline(
        "its masks are made in calls with rows of a source prompt beside those of the target prompt", "StableDiffusionInpaintPipeline"
    ),
    "LEditsPPPipelineStableDiffusion": RefusedPipeline(
        "it inverts an image and edits it with rows of several editing prompts", "StableDiffusionImg2ImgPipeline"
    ),
    "LEditsPPPipelineStableDiffusionXL": RefusedPipeline(
        "it inverts an image and edits it with rows of several editing prompts", "StableDiffusionXLImg2ImgPipeline"
    ),
    "StableDiffusionLDM3DPipeline": RefusedPipeline("it makes images with depth maps, which no metric reads", ""),
    "TextToVideoZeroPipeline": RefusedPipeline("it denoises the frames of a video, whose rows share one prompt"),
    "TextToVideoZeroSDXLPipeline": RefusedPipeline(
        "it denoises the frames of a video, whose rows share one prompt", "StableDiffusionXLPipeline"
    ),
    "StableDiffusionLatentUpscalePipeline": RefusedPipeline(
        "its encode_prompt takes no num_images_per_prompt, and its timesteps are noise levels that no schedule lists", ""
    ),
}

REFUSED_PIPELINES |= {
    f"Marigold{task}Pipeline": RefusedPipeline("it reads the empty prompt alone", "") for task in ("Depth", "Normals", "Intrinsics")
}
REFUSED_PIPELINES |= {
    f"QwenImage{kind}Pipeline": RefusedPipeline("its text encoder reads an image beside the prompt", "QwenImagePipeline")
    for kind in ("Edit", "EditInpaint", "EditPlus", "Layered")
}


_ONE_SEQUENCE = "its blocks read text and image as one sequence by the same weights, and every token sees all others"
_IN_FRONT = f"{_ONE_SEQUENCE}; the blocks of {{}} in front of them read the prompt alone, and no image reads those"
#: By the class of a denoiser that is known and has no family: why.
REFUSED_DENOISERS = {
    "CogVideoXTransformer3DModel": _ONE_SEQUENCE,
    "CogView4Transformer2DModel": _ONE_SEQUENCE,
    "Lumina2Transformer2DModel": _IN_FRONT.format("context_refiner"),
    "ZImageTransformer2DModel": _IN_FRONT.format("context_refiner"),
    "Krea2Transformer2DModel": _IN_FRONT.format("text_fusion"),
    "Flux2Transformer2DModel": "its single blocks have one weight for queries, keys, values and feed-forward, and no site is a part of one",
}


def refuse_pipeline(pipe: Any, encodes_apart: bool = False) -> None:
    """Raises UnsupportedModel for a pipeline on which operations would be wrong or fail, naming its class and the reason.

    Subclasses of a refused class are refused as well.

    Args:
        pipe: the pipeline.
        encodes_apart: see `Family`.
    """
    name = type(pipe).__name__
    known = (REFUSED_PIPELINES[base.__name__] for base in type(pipe).__mro__ if base.__name__ in REFUSED_PIPELINES)
    if (refused := next(known, None)) is not None:
        instead = f"; use {refused.instead}.from_pipe(pipe)" if refused.instead else ""
        raise UnsupportedModel(f"{name} is not supported: {refused.reason}{instead}")
    missing = missing_methods(pipe)
    if missing == [begin_of(pipe)] and getattr(pipe, "text_encoder", None) is None:
        raise UnsupportedModel(f"{name} is not supported: it has no text encoder, so that no prompt reaches its denoiser")
    if missing:
        raise UnsupportedModel(
            f"{name} has no {missing[0]}, without which it is not known when a run begins and which rows carry the prompt; give an "
            "ordinary pipeline of diffusers for the same denoiser, if there is one"
        )
    if missing := missing_encode_parameters(pipe, encodes_apart):
        raise UnsupportedModel(
            f"{name} is not supported: its encode_prompt takes no {' and no '.join(missing)}, so that prompts cannot be encoded as it "
            "encodes them; use a pipeline whose encode_prompt does, such as StableDiffusionPipeline"
        )


def missing_encode_parameters(pipe: Any, encodes_apart: bool = False) -> list[str]:
    """Which of the parameters that a graph gives to a pipeline's `encode_prompt` that method lacks; none where there is no method.

    A parameter that would go into `**kwargs` is missing: nothing would read it.
    """
    encode = getattr(type(pipe), begin_of(pipe), None)
    if encode is None:
        return []
    taken = inspect.signature(encode).parameters
    repeated = NUMBERS[2] in inspect.signature(type(pipe).__call__).parameters  # by the call itself, as the contexts of sounds are
    number = next((name for name in NUMBERS if name in taken), "prompt" if repeated else NUMBERS[0])
    guiding = ("do_classifier_free_guidance", "negative_prompt") if takes_negatives(pipe) and not encodes_apart else ()
    return [name for name in ("prompt", "device", number, *guiding) if name not in taken]


def check_modes(pipe: Any) -> None:
    """Raises UnsupportedModel where a part of the pipeline is in train mode and draws random numbers or keeps statistics in it.

    Two runs of one prompt and seed would differ then. Train mode alone is fine: most models have no dropout.
    """
    for component in _READERS:
        part = getattr(pipe, component, None)
        for path, cause in _random_parts(part) if isinstance(part, nn.Module) else ():
            raise UnsupportedModel(
                f"the {component} of this {type(pipe).__name__} is in train mode, in which {path or 'it'} {cause}, so that equal runs "
                f"differ; call pipe.{component}.eval() first"
            )


def _random_parts(part: nn.Module) -> Iterator[tuple[str, str]]:
    """The paths of modules whose output is not the same twice, and what they do."""
    for path, module in part.named_modules():
        if not module.training:
            continue
        rates = [module.p] if isinstance(module, _DropoutNd) else [value for name, value in vars(module).items() if "dropout" in name]
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            yield path, "drops values at random (dropout)"
        elif isinstance(module, _BatchNorm):
            yield path, "follows the batch (batch norm)"
