"""Stand-ins for published checkpoints: constructed pipelines of the same class and topology, under the ids that pages name."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from neuroscope import testbed
from neuroscope.metrics import clip_score
from neuroscope.pipeline.loading import resolve

TOKENS = 77
#: By hub id, the family that is built.
IDS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
    "prompthero/openjourney": "openjourney",
    "stabilityai/stable-diffusion-2-1": "sd2",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}


def _read_as_much_as_published(pipe: Any) -> None:
    """Lets CLIP text encoders read the published 77 tokens; the constructed ones' vocabulary is small, and words take many tokens."""
    generator = torch.Generator().manual_seed(0)
    for name, part in pipe.components.items():
        if name.startswith("tokenizer"):
            part.model_max_length = TOKENS
        for module in part.modules() if name.startswith("text_encoder") else ():
            if isinstance(module, CLIPTextEmbeddings):
                width = module.position_embedding.embedding_dim
                module.position_embedding = torch.nn.Embedding(TOKENS, width, _weight=torch.randn(TOKENS, width, generator=generator) / 50)
                module.position_ids = torch.arange(TOKENS)[None]
                part.config.max_position_embeddings = TOKENS


def stand_in(monkeypatch: Any) -> None:
    """Puts the stand-ins in diffusers' place, with the CPU for the GPU that pages ask for."""
    read, move = diffusers.DiffusionPipeline.from_pretrained.__func__, diffusers.DiffusionPipeline.to

    def from_pretrained(cls: Any, model: Any, **options: Any) -> Any:
        if model not in IDS:
            assert Path(model).is_dir(), f"{model} is no stand-in; add it to tests/published.py"
            return read(cls, model, **options)
        pipe = testbed.build(IDS[model])
        assert cls in (diffusers.DiffusionPipeline, type(pipe)), f"{model} is a {type(pipe).__name__}"
        pipe.register_to_config(_name_or_path=model)
        _read_as_much_as_published(pipe)
        return pipe

    def to(pipe: Any, place: Any = None, *args: Any, **options: Any) -> Any:
        return move(pipe, "cpu" if place == "cuda" else place, *args, **options)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", to)
    monkeypatch.setattr(clip_score, "resolve", lambda model: resolve("testbed:clip" if model == clip_score.PUBLISHED_CLIP else model))
