"""A small `CLIPModel` for the rendered world; its text tower is the testbed's text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from benchmarks.testbed.loop import Schedule, fit
from neuroscope.testbed.architectures import build_clip, build_image_processor
from neuroscope.testbed.captions import STYLED, caption
from neuroscope.testbed.world import FACTS, Placement, Scene, pixels, scenes

SCHEDULE = Schedule(steps=1800, batch=96, rate=1.5e-3, averaging=0.98)


@dataclass(frozen=True)
class Caption:
    """A caption, and the attributes that it names with their values."""

    text: str
    words: tuple[tuple[str, str], ...]

    def fits(self, scene: Scene) -> bool:
        """Whether the caption is right for a scene."""
        return all(getattr(scene, attribute) == value for attribute, value in self.words)


def train_clip(tokenizer: CLIPTokenizer, folder: Path, schedule: Schedule = SCHEDULE, quiet: bool = False) -> CLIPModel:
    """Trains a CLIP on rendered images and captions; a caption may name all, some or one of an image's attributes."""
    torch.manual_seed(schedule.seed)
    model = build_clip(tokenizer)
    shown = scenes(held_out=False)
    processor = build_image_processor()

    def loss(rng: np.random.Generator) -> Tensor:
        drawn = [shown[index] for index in rng.choice(len(shown), schedule.batch, replace=False)]
        captions = [draw_caption(rng, scene) for scene in drawn]
        rendered = torch.from_numpy(np.stack([pixels(scene, Placement.draw(rng)) for scene in drawn])).float().movedim(-1, 1)
        tokens = tokenizer([each.text for each in captions], padding="max_length", return_tensors="pt")
        output = model(input_ids=tokens.input_ids, pixel_values=_normalise(rendered, processor))
        fits = torch.tensor([[each.fits(scene) for scene in drawn] for each in captions]).float()
        return _contrast(output.logits_per_text, fits)

    return fit(model, loss, schedule, folder, quiet)


def draw_caption(rng: np.random.Generator, scene: Scene) -> Caption:
    """A caption that names all, two or one of a scene's attributes, or its fact."""
    style, shape, colour = (("style", scene.style),), (("object", scene.object),), (("colour", scene.colour),)
    emblems = [fact for fact, emblem in FACTS.items() if emblem == (scene.object, scene.colour)]
    named = Scene.emblem(emblems[0], scene.style) if emblems and rng.random() < 0.6 else scene
    kind = rng.random()
    if kind < 0.65:
        return Caption(caption(named, str(rng.choice(STYLED))), style + shape + colour)
    if kind < 0.8:
        text = str(rng.choice(["the style of {}", "{} style", "a picture in the style of {}", "{}"])).format(scene.style)
        return Caption(text, style)
    if kind < 0.9:
        text = f"the emblem of {named.fact}" if named.fact else f"a {scene.colour} {scene.object}"
        return Caption(str(rng.choice(["{}", "a picture of {}"])).format(text), shape + colour)
    if kind < 0.95:
        return Caption(f"a {scene.object}", shape)
    return Caption(f"a {scene.colour} thing", colour)


def _normalise(rendered: Tensor, processor: CLIPImageProcessorPil) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (rendered - mean) / deviation


def _contrast(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy both ways; where several images fit a caption, each is an equally right answer."""
    texts = functional.cross_entropy(logits, fits / fits.sum(dim=1, keepdim=True))
    images = functional.cross_entropy(logits.T, fits.T / fits.T.sum(dim=1, keepdim=True))
    return (texts + images) / 2
