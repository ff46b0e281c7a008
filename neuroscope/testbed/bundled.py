"""The bundled models and how they are loaded by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neuroscope.core.errors import InvalidInput, choose

_WEIGHTS = Path(__file__).parent / "weights"
#: How the bundled pipelines are meant to be called; their certificates hold for these settings.
GENERATION: dict[str, Any] = {"num_inference_steps": 12, "guidance_scale": 3.0}
#: What calls of a class need besides: PixArt's images have the sizes of its published models unless told otherwise.
_BESIDES: dict[str, dict[str, Any]] = {"PixArtAlphaPipeline": {"use_resolution_binning": False, "clean_caption": False}}
_PREFIX = "testbed:"
#: Of a constructed pipeline's seed, so that every generator takes it.
_DIGITS = 9


def names() -> tuple[str, ...]:
    """The bundled models: text-to-image pipelines, and "clip"."""
    return tuple(sorted(entry.name for entry in _WEIGHTS.iterdir() if entry.is_dir()))


def pipelines() -> tuple[str, ...]:
    """The bundled models that are text-to-image pipelines."""
    return tuple(name for name in names() if (_WEIGHTS / name / "model_index.json").is_file())


def path(name: str) -> Path:
    """The folder of a bundled model, as `save_pretrained` writes it; raises InvalidInput for an unknown name."""
    return _WEIGHTS / choose("bundled model", name, names())


def generation(name: str = "sd1") -> dict[str, Any]:
    """How a bundled pipeline is meant to be called: `GENERATION`, and the options that its class needs besides.

    Raises:
        InvalidInput: an unknown name, or a model that is no pipeline.
    """
    choose("bundled pipeline", name, pipelines())
    index = json.loads((_WEIGHTS / name / "model_index.json").read_text())
    return GENERATION | _BESIDES.get(index["_class_name"], {})


def load(name: str = "sd1", **options: Any) -> Any:
    """A bundled pipeline, in float32 on the CPU unless `options` say otherwise (they go to `from_pretrained`).

    Args:
        name: "sd1" or "pixart", whose attributes are planted in known layers and neurons; "sd1-natural" or "pixart-natural",
            their twins that were trained ordinarily; or FAMILY/PLANT or FAMILY/PLANT/SEED for a constructed pipeline, such as
            "sdxl/pair/3" (see `build`).
        **options: for `from_pretrained`, such as `torch_dtype`.

    Raises:
        InvalidInput: an unknown name; the message lists the bundled ones.
    """
    if isinstance(name, str) and "/" in name:
        return _constructed(name)
    if choose("bundled model", name, names()) not in pipelines():
        raise InvalidInput(f"{_PREFIX}{name} is no pipeline but what metrics read images with; give one of {', '.join(pipelines())}")
    import torch

    from neuroscope.pipeline.quiet import quiet_libraries

    with quiet_libraries():
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(path(name), **({"dtype": torch.float32} | options))
    pipe.register_to_config(_name_or_path=f"{_PREFIX}{name}")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _constructed(name: str) -> Any:
    from neuroscope.pipeline.quiet import quiet_libraries

    with quiet_libraries():
        from neuroscope.testbed.construction import build

    family, plant, *seed = name.split("/")
    if len(seed) > 1 or not all(each.isascii() and each.isdecimal() and len(each) <= _DIGITS for each in seed):
        raise InvalidInput(f"{name!r} names no constructed pipeline; write FAMILY/PLANT or FAMILY/PLANT/SEED, such as sdxl/pair/3")
    return build(family, plant, int(seed[0]) if seed else 0)
