"""Stand-ins for published checkpoints: constructed pipelines of the same class and topology, under the ids that pages name."""

from pathlib import Path
from typing import Any

import diffusers

from neuroscope import testbed
from neuroscope.metrics import clip_score
from neuroscope.pipeline.loading import resolve

#: By hub id, the family that is built.
IDS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
    "prompthero/openjourney": "openjourney",
    "stabilityai/stable-diffusion-2-1": "sd2",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}


def stand_in(monkeypatch: Any) -> None:
    """Puts the stand-ins in diffusers' place, with the CPU for the GPU that pages ask for."""
    read, move = diffusers.DiffusionPipeline.from_pretrained.__func__, diffusers.DiffusionPipeline.to

    def from_pretrained(cls: Any, model: Any, **options: Any) -> Any:
        if model not in IDS:
            assert Path(model).is_dir(), f"{model} is no stand-in; add it to tests/hub.py"
            return read(cls, model, **options)
        pipe = testbed.build(IDS[model])
        assert cls in (diffusers.DiffusionPipeline, type(pipe)), f"{model} is a {type(pipe).__name__}"
        pipe.register_to_config(_name_or_path=model)
        return pipe

    def to(pipe: Any, place: Any = None, *args: Any, **options: Any) -> Any:
        return move(pipe, "cpu" if place == "cuda" else place, *args, **options)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", to)
    monkeypatch.setattr(clip_score, "resolve", lambda model: resolve("testbed:clip" if model == clip_score.PUBLISHED_CLIP else model))
