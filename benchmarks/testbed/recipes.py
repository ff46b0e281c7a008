"""The recipes of the bundled models, from nothing to the files that ship."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from benchmarks.testbed.autoencoder import refine_decoder, train_autoencoder
from benchmarks.testbed.clip import train_clip
from benchmarks.testbed.denoiser import (
    DRAFT,
    DRAFT_WIDTHS,
    NATURAL,
    PLANTED,
    Images,
    build_denoiser,
    build_scheduler,
    narrowed,
    train_denoiser,
)
from benchmarks.testbed.loop import Schedule
from neuroscope.core.errors import choose
from neuroscope.testbed.architectures import build_image_processor
from neuroscope.testbed.captions import corpus
from neuroscope.testbed.plant import PLANT, Plant
from neuroscope.testbed.vocabulary import build_tokenizer
from neuroscope.testbed.world import scenes

MODELS = ("clip", "sd1-natural", "sd1")


@dataclass(frozen=True)
class _Stage:
    """One training of the denoiser; each starts from the stage before it, the draft's lowest level narrowed to spare room."""

    schedule: Schedule
    plant: Plant | None = None


_STAGES = {"sd1-draft": _Stage(DRAFT), "sd1-natural": _Stage(NATURAL), "sd1": _Stage(PLANTED, PLANT)}


def train(name: str, folder: Path, quiet: bool = False) -> Path:
    """Trains a bundled model and all that it needs, and returns its folder under `folder/models`.

    Each stage keeps checkpoints in a folder of its own: a run that was stopped goes on from them, and finished stages are
    not trained again. On two cores: CLIP 8 minutes, the autoencoder and its decoder 12, the natural denoiser 25, the planted one 20.

    Raises:
        InvalidInput: an unknown name.
    """
    choose("bundled model", name, MODELS)
    stages = folder / "stages"
    clip = _finished(stages / "clip" / "model", lambda place: _save_clip(place, stages / "clip", quiet))
    if name == "clip":
        return _published(clip, folder / "models" / name)
    autoencoder = _finished(
        stages / "autoencoder" / "model", lambda place: train_autoencoder(place.parent, quiet=quiet).save_pretrained(place)
    )
    start: Path | None = None
    for label, stage in _STAGES.items():
        start = _finished(stages / label / "model", partial(_train, stage, start, clip, autoencoder, quiet))
        if label == name:
            break
    refined = _finished(stages / "decoder" / "model", lambda place: _refine(autoencoder, place, quiet))
    return _assemble(clip, refined, start, folder / "models" / name)


def _train(stage: _Stage, start: Path | None, clip: Path, autoencoder: Path, quiet: bool, place: Path) -> None:
    encoder = CLIPModel.from_pretrained(clip).text_model.eval()
    images = Images(AutoencoderKL.from_pretrained(autoencoder).eval(), encoder, CLIPTokenizer.from_pretrained(clip))
    torch.manual_seed(0)
    denoiser = narrowed(UNet2DConditionModel.from_pretrained(start)) if start else build_denoiser(encoder.config.hidden_size, DRAFT_WIDTHS)
    train_denoiser(denoiser, stage.plant, images, place.parent, stage.schedule, quiet).save_pretrained(place)


def _save_clip(place: Path, run: Path, quiet: bool) -> None:
    tokenizer = build_tokenizer(corpus(scenes(held_out=False)))
    model = train_clip(tokenizer, run, quiet=quiet)
    model.save_pretrained(place)
    CLIPProcessor(build_image_processor(), tokenizer).save_pretrained(place)


def _refine(autoencoder: Path, place: Path, quiet: bool) -> None:
    refine_decoder(AutoencoderKL.from_pretrained(autoencoder), place.parent, quiet=quiet).save_pretrained(place)


def _assemble(clip: Path, autoencoder: Path, denoiser: Path | None, place: Path) -> Path:
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(autoencoder),
        text_encoder=CLIPModel.from_pretrained(clip).text_model,
        tokenizer=CLIPTokenizer.from_pretrained(clip),
        unet=UNet2DConditionModel.from_pretrained(denoiser),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(place)
    return place


def _published(clip: Path, place: Path) -> Path:
    CLIPModel.from_pretrained(clip).half().save_pretrained(place)
    CLIPProcessor.from_pretrained(clip).save_pretrained(place)
    return place


def _finished(place: Path, make: Callable[[Path], None]) -> Path:
    """`place` as `make` writes it; it appears only when complete, and is not made twice."""
    if not place.exists():
        unfinished = place.with_name(place.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        unfinished.replace(place)
    return place
