"""The testbed: small text-to-image models whose inside is known, and the rendered world that they draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuroscope._errors import choose
from neuroscope.testbed.readers import Reader, read

__all__ = ["GENERATION", "Reader", "load", "names", "path", "read", "resolve"]

_WEIGHTS = Path(__file__).parent / "weights"
#: How the bundled pipelines are meant to be called; their certificates hold for these settings.
GENERATION: dict[str, Any] = {"num_inference_steps": 12, "guidance_scale": 3.0}
_PREFIX = "testbed:"


def names() -> tuple[str, ...]:
    """The bundled models: text-to-image pipelines, and "clip"."""
    return tuple(sorted(entry.name for entry in _WEIGHTS.iterdir() if entry.is_dir()))


def path(name: str) -> Path:
    """The folder of a bundled model, as `save_pretrained` writes it; raises InvalidInput for an unknown name."""
    return _WEIGHTS / choose("bundled model", name, names())


def resolve(model: str) -> str | Path:
    """The folder of "testbed:NAME"; any other folder or hub id as it is."""
    return path(model.removeprefix(_PREFIX)) if model.startswith(_PREFIX) else model


def load(name: str = "sd1", **options: Any) -> Any:
    """A bundled pipeline, in float32 on the CPU unless `options` say otherwise (they go to `from_pretrained`).

    Args:
        name: "sd1", whose attributes are planted in known layers and neurons, or "sd1-natural", its twin that was
            trained ordinarily.
        **options: for `from_pretrained`, such as `torch_dtype`.

    Raises:
        InvalidInput: an unknown name; the message lists the bundled ones.
    """
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(path(name), **({"dtype": torch.float32} | options))
    pipe.register_to_config(_name_or_path=f"{_PREFIX}{name}")
    pipe.set_progress_bar_config(disable=True)
    return pipe
