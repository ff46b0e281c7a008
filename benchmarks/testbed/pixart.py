"""The recipe of `pixart` and its twin: a PixArt transformer with a T5 encoder, for the latents of sd1's autoencoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer, T5EncoderModel

from benchmarks.testbed.denoiser import Architecture, Images, build_scheduler, train_denoiser
from benchmarks.testbed.loop import Schedule
from benchmarks.testbed.planting import Contexts
from benchmarks.testbed.stages import Stage, finished, publish
from benchmarks.testbed.t5 import encode, train_t5
from neuroscope import testbed
from neuroscope.testbed.construction.builders.encoders import t5_tokenizer
from neuroscope.testbed.plant import PIXART_PLANT

DRAFT = Schedule(steps=3000, batch=32, rate=1.5e-3, warmup=100, averaging=0.998, checkpoint_every=50)
NATURAL = Schedule(steps=3000, batch=32, rate=1.5e-3, warmup=100, averaging=0.998, seed=3, checkpoint_every=50)
PLANTED = Schedule(steps=3000, batch=32, rate=1e-3, warmup=100, averaging=0.998, seed=1, checkpoint_every=50)
#: The draft has colours and styles, but few shapes; the twin goes on from it with the rate as high as at first.
STAGES = {"pixart-draft": Stage(DRAFT), "pixart-natural": Stage(NATURAL), "pixart": Stage(PLANTED, PIXART_PLANT)}
MODELS = ("pixart-natural", "pixart")
DEPTH, HEADS, HEAD_WIDTH = 8, 3, 32
#: Placements of each scene. A transformer has to learn that shapes move.
_VIEWS = 32


def train(name: str, folder: Path, quiet: bool = False) -> Path:
    """Trains "pixart-natural" or "pixart" and all that it needs; returns its folder under `folder/models`.

    The autoencoder and CLIP, which teaches the T5 encoder, are the bundled ones.
    """
    stages = folder / "stages"
    text = finished(stages / "t5" / "model", partial(_train_t5, quiet))
    start: Path | None = None
    for label, stage in STAGES.items():
        start = finished(stages / label / "model", partial(_train, stage, start, text, quiet))
        if label == name:
            break
    return assemble(text, start, folder / "models" / name)


def build_denoiser(context_width: int) -> PixArtTransformer2DModel:
    """An untrained PixArt transformer for 16×16 latents: 8 blocks, 96 channels, 64 patches.

    Half of its output channels are for a learned variance, as in the published models; the pipeline drops them, and they stay untrained.
    """
    return PixArtTransformer2DModel(
        sample_size=16,
        num_layers=DEPTH,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        cross_attention_dim=HEADS * HEAD_WIDTH,
        caption_channels=context_width,
        use_additional_conditions=False,
    )


def cross_attention_layers(denoiser: PixArtTransformer2DModel) -> list[nn.Module]:
    """The cross-attention modules in execution order."""
    return [block.attn2 for block in denoiser.transformer_blocks]


def predict(denoiser: Any, noisy: Tensor, timesteps: Tensor, contexts: Contexts) -> Tensor:
    """The predicted noise or velocity, without the variance; `contexts` becomes what the layers read, behind the caption projection."""
    none = contexts.layers[0, :, :1]  # each layer is given its own
    contexts.layers = denoiser.caption_projection(contexts.layers)
    contexts.unrelated = denoiser.caption_projection(contexts.unrelated)
    conditions = {"resolution": None, "aspect_ratio": None}
    output: Tensor = denoiser(noisy, encoder_hidden_states=none, timestep=timesteps, added_cond_kwargs=conditions).sample
    return output[:, : noisy.shape[1]]


PIXART = Architecture(cross_attention_layers, predict)


def _train_t5(quiet: bool, place: Path) -> None:
    tokenizer, clip = t5_tokenizer(), testbed.path("clip")
    teacher = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    train_t5(tokenizer, teacher, CLIPTokenizer.from_pretrained(clip), place.parent, quiet=quiet).save_pretrained(place)
    tokenizer.save_pretrained(place)


def _train(stage: Stage, start: Path | None, text: Path, quiet: bool, place: Path) -> None:
    encoder = T5EncoderModel.from_pretrained(text).eval()
    images = Images(_autoencoder(), partial(encode, encoder, AutoTokenizer.from_pretrained(text)), _VIEWS)
    torch.manual_seed(0)
    denoiser = PixArtTransformer2DModel.from_pretrained(start) if start else build_denoiser(encoder.config.d_model)
    train_denoiser(PIXART, denoiser, stage.plant, images, place.parent, stage.schedule, quiet).save_pretrained(place)


def _autoencoder() -> AutoencoderKL:
    """The bundled one."""
    return AutoencoderKL.from_pretrained(testbed.path("sd1"), subfolder="vae", dtype=torch.float32).eval()


def assemble(text: Path, denoiser: Path | None, place: Path) -> Path:
    """Writes the pipeline of a text encoder and a denoiser, in float16, to `place`."""
    pipe = PixArtAlphaPipeline(
        tokenizer=AutoTokenizer.from_pretrained(text),
        text_encoder=T5EncoderModel.from_pretrained(text),
        vae=_autoencoder(),
        transformer=PixArtTransformer2DModel.from_pretrained(denoiser),
        scheduler=build_scheduler(),
    )
    return publish(pipe, place)
