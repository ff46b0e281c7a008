"""The recipe of `sd1` and its twin: a UNet of the published SD-v1 topology, with the testbed's CLIP and autoencoder, from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from benchmarks.testbed.autoencoder import refine_decoder, train_autoencoder
from benchmarks.testbed.clip import train_clip
from benchmarks.testbed.denoiser import Architecture, Encoded, Images, build_scheduler, train_denoiser
from benchmarks.testbed.loop import Schedule
from benchmarks.testbed.planting import Contexts
from benchmarks.testbed.stages import Stage, finished, publish
from neuroscope.testbed.architectures import build_image_processor
from neuroscope.testbed.captions import corpus
from neuroscope.testbed.plant import PLANT
from neuroscope.testbed.vocabulary import build_tokenizer
from neuroscope.testbed.world import scenes

DRAFT = Schedule(steps=1300, batch=64, rate=1.5e-3)
NATURAL = Schedule(steps=250, batch=64, rate=1e-3, seed=3)
PLANTED = Schedule(steps=1300, batch=64, rate=1e-3, seed=1)
DRAFT_WIDTHS, WIDTHS = (32, 96, 96, 96), (32, 96, 96, 64)
#: The draft's lowest level is narrowed afterwards, to spare room.
STAGES = {"sd1-draft": Stage(DRAFT), "sd1-natural": Stage(NATURAL), "sd1": Stage(PLANTED, PLANT)}
MODELS = ("clip", "sd1-natural", "sd1")


def train(name: str, folder: Path, quiet: bool = False) -> Path:
    """Trains "clip", "sd1-natural" or "sd1" and all that it needs; returns its folder under `folder/models`.

    On two cores: CLIP 8 minutes, the autoencoder and its decoder 12, the natural denoiser 25, the planted one 20.
    """
    stages = folder / "stages"
    clip = finished(stages / "clip" / "model", lambda place: _save_clip(place, stages / "clip", quiet))
    if name == "clip":
        return _published(clip, folder / "models" / name)
    autoencoder = finished(
        stages / "autoencoder" / "model", lambda place: train_autoencoder(place.parent, quiet=quiet).save_pretrained(place)
    )
    start: Path | None = None
    for label, stage in STAGES.items():
        start = finished(stages / label / "model", partial(_train, stage, start, clip, autoencoder, quiet))
        if label == name:
            break
    refined = finished(stages / "decoder" / "model", lambda place: _refine(autoencoder, place, quiet))
    return _assemble(clip, refined, start, folder / "models" / name)


def build_denoiser(context_width: int, widths: tuple[int, ...] = WIDTHS) -> UNet2DConditionModel:
    """An untrained UNet of the published SD-v1 topology, 32 to 96 channels wide, for 16×16 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=list(widths),
        layers_per_block=2,
        cross_attention_dim=context_width,
        attention_head_dim=[2, 4, 4, 4],
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    )


def narrowed(draft: UNet2DConditionModel, widths: tuple[int, ...] = WIDTHS) -> UNet2DConditionModel:
    """The same UNet with narrower levels, which keep the leading slice of each weight; train on to mend what is lost."""
    narrow = build_denoiser(draft.config.cross_attention_dim, widths)
    weights = draft.state_dict()
    kept = {name: weights[name][tuple(map(slice, fresh.shape))] for name, fresh in narrow.state_dict().items() if name in weights}
    narrow.load_state_dict(kept, strict=False)
    return narrow


def cross_attention_layers(denoiser: UNet2DConditionModel) -> list[nn.Module]:
    """The cross-attention modules in execution order: down, middle, up."""
    blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
    transformers = [each for block in blocks for each in getattr(block, "attentions", ())]
    return [inner.attn2 for each in transformers for inner in each.transformer_blocks]


def _predict(denoiser: Any, noisy: Tensor, timesteps: Tensor, contexts: Contexts) -> Tensor:
    predicted: Tensor = denoiser(noisy, timesteps, contexts.layers[0]).sample
    return predicted


UNET = Architecture(cross_attention_layers, _predict)


def _encode(encoder: nn.Module, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Encoded:
    return Encoded(encoder(tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids).last_hidden_state)


def _train(stage: Stage, start: Path | None, clip: Path, autoencoder: Path, quiet: bool, place: Path) -> None:
    encoder = CLIPModel.from_pretrained(clip).text_model.eval()
    encode = partial(_encode, encoder, CLIPTokenizer.from_pretrained(clip))
    images = Images(AutoencoderKL.from_pretrained(autoencoder).eval(), encode)
    torch.manual_seed(0)
    denoiser = narrowed(UNet2DConditionModel.from_pretrained(start)) if start else build_denoiser(encoder.config.hidden_size, DRAFT_WIDTHS)
    train_denoiser(UNET, denoiser, stage.plant, images, place.parent, stage.schedule, quiet).save_pretrained(place)


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
    return publish(pipe, place)


def _published(clip: Path, place: Path) -> Path:
    CLIPModel.from_pretrained(clip).half().save_pretrained(place)
    CLIPProcessor.from_pretrained(clip).save_pretrained(place)
    return place
