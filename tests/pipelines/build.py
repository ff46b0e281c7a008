"""Tiny pipelines of diffusers' own classes, with the true layout of their denoisers' rows as plain data.

The layouts were seen with plain hooks; `test_rows` compares them again with what the text encoders give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers

from neuroscope.testbed.construction.pipelines import build_unplanted
from tests.families.tiny import SCHEDULE
from tests.pipelines import parts
from tests.pipelines.example import SOURCE, Example, Layout, layout

Arguments = Callable[[], dict[str, Any]]


def _made(name: str, make: Callable[..., Any], rows: Layout | None, arguments: Arguments, made: Arguments, **options: Any) -> Example:
    def short() -> dict[str, Any]:
        return {"num_inference_steps": 2, "output_type": "latent"} | arguments()

    return Example(name, lambda: make(getattr(diffusers, name), **made()), rows or layout("na"), arguments=short, **options)


def _sd(name: str, rows: Layout | None = None, arguments: Arguments = dict, made: Arguments = dict, **options: Any) -> Example:
    return _made(name, parts.stable_diffusion, rows, arguments, made, **options)


def _xl(name: str, rows: Layout | None = None, arguments: Arguments = dict, made: Arguments = dict, **options: Any) -> Example:
    return _made(name, parts.sdxl, rows, arguments, made, **options)


def _if(name: str, arguments: Arguments, enlarges: bool = False, **options: Any) -> Example:
    def pixels() -> dict[str, Any]:
        return {"output_type": "pt", "clean_caption": False} | arguments()

    return _made(name, parts.deepfloyd, None, pixels, lambda: {"enlarges": enlarges}, **options)


def _pixart(name: str, rows: Layout | None = None, made: Arguments = dict, **options: Any) -> Example:
    def small() -> dict[str, Any]:
        return {"use_resolution_binning": False, "clean_caption": False} | _sized()

    return _made(name, parts.pixart, rows, small, made, **options)


def _family(kind: str, name: str, rows: Layout, arguments: Arguments, **options: Any) -> Example:
    def short() -> dict[str, Any]:
        return {"num_inference_steps": 2, "output_type": "latent"} | arguments()

    return Example(kind, lambda: build_unplanted(name, 0), rows, arguments=short, **options)


def _sprint() -> Any:
    base = build_unplanted("sana", 0)
    config = {name: value for name, value in base.transformer.config.items() if name[0] != "_"}
    transformer = diffusers.SanaTransformer2DModel(**(config | {"guidance_embeds": True, "num_layers": 4}))
    kept = {name: base.components[name] for name in ("tokenizer", "text_encoder", "vae")}
    return diffusers.SanaSprintPipeline(**kept, transformer=transformer, scheduler=diffusers.SCMScheduler())


def _filmed(frames: int) -> Arguments:
    return lambda: _sized() | {"num_frames": frames}


def _unbinned() -> dict[str, Any]:
    return _sized() | {"use_resolution_binning": False}


def _told_sizes() -> dict[str, Any]:
    return {"sized": True}


def _perturbed_blocks() -> dict[str, Any]:
    return {"pag_applied_layers": ["blocks.1"]}


def _sized() -> dict[str, Any]:
    return {"height": parts.SIZE, "width": parts.SIZE}


def _shown() -> dict[str, Any]:
    return {"image": parts.image()}


def _shown_two() -> dict[str, Any]:
    return {"image": [parts.image(), parts.image(shift=8)]}


def _shown_to_adapters() -> dict[str, Any]:
    return _shown_two() | {"adapter_conditioning_scale": [0.5, 0.5]}


def _shown_sized() -> dict[str, Any]:
    return _shown() | _sized()


def _changed(size: int = parts.SIZE) -> dict[str, Any]:
    return {"image": parts.image(size), "strength": 1.0}


def _painted(size: int = parts.SIZE) -> dict[str, Any]:
    return _changed(size) | {"mask_image": parts.mask_image(size)}


def _painted_sized() -> dict[str, Any]:
    return _painted() | _sized()


def _deepened() -> dict[str, Any]:
    return _changed() | {"depth_map": parts.depth()}


def _controlled_change() -> dict[str, Any]:
    return _changed() | {"control_image": parts.image(shift=8)}


def _controlled_painting() -> dict[str, Any]:
    return _painted() | {"control_image": parts.image(shift=8)}


def _controlled_painting_sized() -> dict[str, Any]:
    return _controlled_painting() | _sized()


def _enlarged() -> dict[str, Any]:
    return {"image": parts.image(parts.SIZE // 4)}


def _pixels_changed() -> dict[str, Any]:
    return _changed(parts.PIXELS)


def _pixels_painted() -> dict[str, Any]:
    return _painted(parts.PIXELS)


def _pixels_enlarged() -> dict[str, Any]:
    return _enlarged() | {"noise_level": 100}


def _pixels_enlarged_change() -> dict[str, Any]:
    return _pixels_enlarged() | {"original_image": parts.image(parts.PIXELS), "strength": 1.0}


def _pixels_enlarged_painting() -> dict[str, Any]:
    return _pixels_enlarged_change() | {"mask_image": parts.mask_image(parts.PIXELS)}


def _boxed() -> dict[str, Any]:
    return _sized() | {"gligen_phrases": ["a circle"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]}


def _from_source() -> dict[str, Any]:
    return _changed() | {"source_prompt": SOURCE, "eta": 0.1}


def _excited() -> dict[str, Any]:
    return _sized() | {"token_indices": [2], "max_iter_to_alter": 0, "attn_res": (parts.LATENTS, parts.LATENTS)}


def _film() -> dict[str, Any]:
    return _sized() | {"video_length": 2, "t0": 0, "t1": 1, "num_inference_steps": 4}


def _compared() -> dict[str, Any]:
    return _shown() | {"source_prompt": SOURCE, "num_maps_per_mask": 1}


def _as_arrays() -> dict[str, Any]:
    return _sized() | {"output_type": "np"}


def _compare(pipe: Any, *, prompt: list[str], generator: Any, **options: Any) -> Any:
    return pipe.generate_mask(target_prompt=prompt[0], generator=generator[0], **(options | {"output_type": "np"}))


def _edit(pipe: Any, *, prompt: list[str], guidance_scale: float, generator: Any, **_: Any) -> Any:
    pipe.invert(parts.image(), num_inversion_steps=2, skip=0.0, generator=generator[0], height=parts.SIZE, width=parts.SIZE)
    options = {"edit_guidance_scale": guidance_scale, "use_intersect_mask": False, "output_type": "latent"}
    return pipe(editing_prompt=prompt, generator=generator[0], **options)


def _channels(count: int) -> Arguments:
    return lambda: {"unet_config": {"in_channels": count}}


def _depth_parts() -> dict[str, Any]:
    return {"unet_config": {"in_channels": 5}, "depth_estimator": None}


def _control(make: Callable[[], Any], count: int = 1) -> Arguments:
    return lambda: {"controlnet": make() if count == 1 else [make() for _ in range(count)]}


def _adapter() -> dict[str, Any]:
    return {"adapter": parts.adapter()}


def _two_adapters() -> dict[str, Any]:
    return {"adapter": diffusers.MultiAdapter([parts.adapter(), parts.adapter()])}


def _perturbed() -> dict[str, Any]:
    return {"pag_applied_layers": "mid"}


def _consistent() -> dict[str, Any]:
    return {"unet_config": {"time_cond_proj_dim": 16}, "scheduler": diffusers.LCMScheduler(**SCHEDULE)}


def _upscaler(**config: Any) -> Arguments:
    return lambda: {
        "unet_config": {"in_channels": 7, "num_class_embeds": 1000} | config,
        "low_res_scheduler": parts.ddim(),
        "watermarker": None,
    }


def _latent_upscaler() -> dict[str, Any]:
    config = {"in_channels": 8, "out_channels": 5, "time_cond_proj_dim": 2 * 64 + parts.WIDTH}
    return {"scheduler": diffusers.EulerDiscreteScheduler(), "unet_config": config}


def _gligen() -> dict[str, Any]:
    return {"unet_config": {"attention_type": "gated"}}


def _parallel() -> dict[str, Any]:
    return {"scheduler": diffusers.DDIMParallelScheduler(**SCHEDULE)}


def _two_outputs() -> dict[str, Any]:
    return {"image_encoder": None, "vae": parts.autoencoder(out_channels=6)}


def _inverse() -> dict[str, Any]:
    return {"inverse_scheduler": diffusers.DDIMInverseScheduler(**SCHEDULE)}


def _stochastic() -> dict[str, Any]:
    noise = {name: SCHEDULE[name] for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    return {"scheduler": diffusers.DPMSolverMultistepScheduler(**noise, algorithm_type="sde-dpmsolver++", solver_order=2)}


_PERTURBED = layout("naa", "aa")
_THREE_PARTS = layout("ann")
_TWO_MODELS: Layout = {(True, 1): ("eesa",), (False, 1): ("sa",)}
_INTERLEAVED: Layout = {(True, 1): ("nana", "na"), (True, 2): ("nnabnnab", "nnab"), (False, 1): ("aa", "a"), (False, 2): ("abab", "ab")}


def _inverted_first(empty: str) -> Layout:
    """Two calls that find the image's noise, without a prompt, and two that edit, with rows for every prompt."""
    runs = ((guided, prompts) for guided in (True, False) for prompts in (1, 2))
    return {run: (empty, empty, *[empty + "ab"[: run[1]]] * 2) for run in runs}


_STABLE_DIFFUSION = (
    _sd("StableDiffusionPipeline", None, _sized),
    _sd("StableDiffusionImg2ImgPipeline", None, _changed),
    _sd("StableDiffusionInpaintPipeline", None, _painted, listed=("image", "mask_image")),
    _sd("StableDiffusionDepth2ImgPipeline", None, _deepened, _depth_parts),
    _sd("StableDiffusionInstructPix2PixPipeline", _THREE_PARTS, _shown, _channels(8)),
    _sd("StableDiffusionControlNetPipeline", None, _shown, _control(parts.control_net)),
    _sd("StableDiffusionControlNetPipeline", None, _shown_two, _control(parts.control_net, 2), variant="two nets"),
    _sd("StableDiffusionControlNetImg2ImgPipeline", None, _controlled_change, _control(parts.control_net)),
    _sd(
        "StableDiffusionControlNetInpaintPipeline", None, _controlled_painting, _control(parts.control_net), listed=("image", "mask_image")
    ),
    _sd("StableDiffusionAdapterPipeline", None, _shown, _adapter, listed=("image",)),
    _sd("StableDiffusionAdapterPipeline", None, _shown_to_adapters, _two_adapters, variant="two adapters", listed=("image",)),
    _sd("StableDiffusionPAGPipeline", _PERTURBED, _sized, _perturbed),
    _sd("StableDiffusionPAGPipeline", layout("na"), lambda: _sized() | {"pag_scale": 0.0}, _perturbed, variant="pag_scale=0"),
    _sd("StableDiffusionPAGImg2ImgPipeline", _PERTURBED, _changed, _perturbed),
    _sd("StableDiffusionPAGInpaintPipeline", _PERTURBED, _painted, _perturbed, listed=("image", "mask_image")),
    _sd("StableDiffusionControlNetPAGPipeline", _PERTURBED, _shown, lambda: _perturbed() | _control(parts.control_net)()),
    _sd("LatentConsistencyModelPipeline", layout("a"), _sized, _consistent, negative=False),
    _sd("LatentConsistencyModelImg2ImgPipeline", layout("a"), _changed, _consistent, negative=False),
    _sd("StableDiffusionUpscalePipeline", None, _enlarged, _upscaler(), listed=("image",)),
    _sd(
        "StableDiffusionUpscalePipeline",
        None,
        _enlarged,
        _upscaler(only_cross_attention=[True, False]),
        variant="as published",
        listed=("image",),
        refusal="attn1",
        why="self-attentions of some blocks read the prompt as well (`only_cross_attention`), where no site is known",
    ),
    _sd("StableDiffusionGLIGENPipeline", None, _boxed, _gligen),
)
_REFUSED = (
    _sd("StableDiffusionLatentUpscalePipeline", None, _shown, _latent_upscaler, listed=("image",), refusal="num_images_per_prompt"),
    _sd("StableDiffusionPanoramaPipeline", None, _sized, refusal="views"),
    _sd("StableDiffusionSAGPipeline", layout("na n", "a a"), _sized, refusal="degraded"),
    _sd("CycleDiffusionPipeline", _TWO_MODELS, _from_source, negative=False, refusal="source"),
    _sd("StableDiffusionParadigmsPipeline", _INTERLEAVED, _sized, _parallel, refusal="parallel"),
    _sd("StableDiffusionDiffEditPipeline", {(True, 1): ("seae",)}, _compared, _inverse, call=_compare, negative=False, refusal="source"),
    _sd("StableDiffusionAttendAndExcitePipeline", {(True, 1): ("a", "na"), (False, 1): ("a", "a")}, _excited, refusal="attention"),
    _sd("StableDiffusionLDM3DPipeline", None, _as_arrays, _two_outputs, refusal="depth"),
    _sd("TextToVideoZeroPipeline", {(True, 1): ("na", "na", "na", "nnaa", "nnaa")}, _film, refusal="frames"),
    _sd("LEditsPPPipelineStableDiffusion", _inverted_first("e"), dict, _stochastic, call=_edit, negative=False, refusal="editing prompts"),
    _xl("LEditsPPPipelineStableDiffusionXL", _inverted_first("-"), dict, call=_edit, negative=False, refusal="editing prompts"),
)
_STABLE_DIFFUSION_XL = (
    _xl("StableDiffusionXLPipeline", None, _sized),
    _xl("StableDiffusionXLImg2ImgPipeline", None, _changed),
    _xl("StableDiffusionXLInpaintPipeline", None, _painted_sized, listed=("image", "mask_image")),
    _xl("StableDiffusionXLInstructPix2PixPipeline", _THREE_PARTS, _shown_sized, _channels(8)),
    _xl("StableDiffusionXLControlNetPipeline", None, _shown, _control(parts.sdxl_control_net)),
    _xl("StableDiffusionXLControlNetPipeline", None, _shown_two, _control(parts.sdxl_control_net, 2), variant="two nets"),
    _xl("StableDiffusionXLControlNetImg2ImgPipeline", None, _controlled_change, _control(parts.sdxl_control_net)),
    _xl("StableDiffusionXLAdapterPipeline", None, _shown_sized, _adapter, listed=("image",)),
    _xl(
        "StableDiffusionXLControlNetInpaintPipeline",
        None,
        _controlled_painting_sized,
        _control(parts.sdxl_control_net),
        listed=("image", "mask_image"),
    ),
    _xl("StableDiffusionXLPAGPipeline", _PERTURBED, _sized, _perturbed),
    _xl("StableDiffusionXLPAGImg2ImgPipeline", _PERTURBED, _changed, _perturbed),
)
_DEEPFLOYD = (
    _if("IFPipeline", dict),
    _if("IFImg2ImgPipeline", _pixels_changed, listed=("image",)),
    _if("IFInpaintingPipeline", _pixels_painted, listed=("image", "mask_image")),
    _if("IFSuperResolutionPipeline", _pixels_enlarged, True, listed=("image",)),
    _if("IFImg2ImgSuperResolutionPipeline", _pixels_enlarged_change, True, listed=("image", "original_image")),
    _if("IFInpaintingSuperResolutionPipeline", _pixels_enlarged_painting, True, listed=("image", "original_image", "mask_image")),
)
_PIXART = (
    _pixart("PixArtAlphaPipeline"),
    _pixart("PixArtAlphaPipeline", made=_told_sizes, variant="told the size"),
    _pixart("PixArtSigmaPipeline"),
    _pixart("PixArtSigmaPAGPipeline", _PERTURBED, _perturbed_blocks),
)

_FRAMES: Layout = {(True, 1): ("nnaa",), (True, 2): ("nnnnaabb",), (False, 1): ("aa",), (False, 2): ("aabb",)}
_FAMILIES = (
    _family("SanaPipeline", "sana", layout("na"), _unbinned),
    Example(
        "SanaSprintPipeline",
        _sprint,
        layout("a"),
        arguments=lambda: {"num_inference_steps": 2, "output_type": "latent"} | _unbinned(),
        negative=False,
    ),
    _family("LTXPipeline", "ltx", layout("na"), _filmed(3)),
    _family("WanPipeline", "wan", layout("a n"), _filmed(5)),
    _family("AnimateDiffPipeline", "animatediff", _FRAMES, _filmed(2)),
)

_EVERY = (*_STABLE_DIFFUSION, *_STABLE_DIFFUSION_XL, *_DEEPFLOYD, *_PIXART, *_FAMILIES, *_REFUSED)
PIPELINES: dict[str, Example] = {each.name: each for each in _EVERY}
