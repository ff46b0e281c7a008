"""AudioLDM 2: a UNet whose layers read the states of a T5 encoder, or what GPT-2 writes of the prompt, or no text.

At every place three transformers stand one behind the other. In the first both attentions are self-attention; the second reads GPT-2's
states, the third those of T5, under the prompt's mask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.core.sounds import Sound
from neuroscope.pipeline.families._family import place_of
from neuroscope.pipeline.families.attentions import AttentionMask
from neuroscope.pipeline.families.decoding import decoded
from neuroscope.pipeline.families.encoding import Encoded
from neuroscope.pipeline.families.unets.unet import CHUNKED, FUSED, UNET, block_name

GPT2, T5 = "gpt2", "t5"
_TOKENS = 7  # sounds have powers of four
_UNSEEN = -10000.0  # what the UNet adds to the scores of tokens that are not seen
_ATTENTION = re.compile(r"(?P<block>.+)\.attentions\.(?P<number>\d+)(\..+)?")


def _reads_of(denoiser: Any, path: str) -> str | None:
    """The encoder that a transformer reads, by its place among those that stand one behind the other."""
    found = _ATTENTION.fullmatch(path)
    if found is None:
        return ""
    widths = denoiser.get_submodule(found["block"]).cross_attention_dim
    place = int(found["number"]) % len(widths)
    return None if widths[place] is None else GPT2 if place < 2 else T5


def _inputs(denoiser: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (2 ** len(config.block_out_channels),) * 2
    place = place_of(denoiser)
    first, second = (
        next((width for width in widths if width is not None), 1)
        for widths in (denoiser.mid_block.cross_attention_dim[:2], denoiser.mid_block.cross_attention_dim[2:])
    )
    return {
        "sample": torch.zeros(1, config.in_channels, height, width, **place),
        "timestep": torch.ones(1, dtype=torch.long, device=place["device"]),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, first, **place),
        "encoder_hidden_states_1": torch.zeros(1, _TOKENS, second, **place),
        "encoder_attention_mask_1": torch.ones(1, _TOKENS, **place),
    }


def _read(denoiser: Any, module: str, conditions: Conditions) -> Tensor:
    if _reads_of(denoiser, module) == T5:
        return conditions.context
    if conditions.generated is None:
        raise InvalidInput("this change holds nothing generated, which layers of GPT-2 read; make it with graph.text.conditions")
    return conditions.generated


def _settle(pipe: Any, encoded: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """T5's states and mask at the tokenizer's full length: the pipeline pads them to the longest prompt of a batch.

    No attention sees the padding.
    """
    context, mask, generated = encoded
    missing = max(0, int(pipe.tokenizer_2.model_max_length) - context.shape[1])
    return functional.pad(context, (0, 0, 0, missing)), functional.pad(mask, (0, missing)), generated


def _split(
    _order: Sequence[Encoded], _pipe: Any, found: Any, args: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Conditions, Conditions | None]:
    """The pipeline's `encode_prompt` puts negative prompts before the prompts, in one batch."""
    context, mask, generated = found
    guided = options["do_classifier_free_guidance"] if "do_classifier_free_guidance" in options else args[3]
    if not guided:
        return Conditions(context, mask=mask, generated=generated), None
    negative, positive = (
        Conditions(part, mask=seen, generated=states)
        for part, seen, states in zip(context.chunk(2), mask.chunk(2), generated.chunk(2), strict=True)
    )
    return positive, negative


@torch.no_grad()
def _decode(pipe: Any, latents: Tensor, options: Mapping[str, Any]) -> list[Image]:
    """The vocoder's sounds of the spectrograms, of the length that was asked for."""
    seconds, rate = options.get("audio_length_in_s"), int(pipe.vocoder.config.sampling_rate)
    waves = [pipe.mel_spectrogram_to_waveform(decoded(pipe, each[None])) for each in latents]
    return [Sound.of(each.numpy()[:, : None if seconds is None else int(seconds * rate)], rate) for each in waves]


def _latent_size(pipe: Any, denoiser: Any, *_size: int | None) -> tuple[int, int]:
    """Frames and frequencies; a spectrogram has as many of these as the vocoder reads, whatever the sound's length."""
    return int(denoiser.config.sample_size), int(pipe.vocoder.config.model_in_dim) // int(pipe.vae_scale_factor)


AUDIOLDM2 = replace(
    UNET,
    name="audioldm2-unet",
    denoisers=("AudioLDM2UNet2DConditionModel",),
    matches=lambda config: isinstance(config.cross_attention_dim, list | tuple) and config.class_embed_type is None,
    refusals=(FUSED, CHUNKED),
    block_name=block_name,
    inputs=_inputs,
    encoded=(
        Encoded("prompt_embeds"),
        Encoded("attention_mask", "mask"),
        Encoded("generated_prompt_embeds", "generated"),
        Encoded("negative_prompt_embeds", part="unconditional"),
        Encoded("negative_attention_mask", "mask", "unconditional"),
        Encoded("negative_generated_prompt_embeds", "generated", "unconditional"),
    ),
    read=_read,
    tokenizers=("tokenizer_2",),
    text_encoders=("text_encoder_2",),
    split=_split,
    arguments={"latents": "sample", "timestep": "timestep", "context": "encoder_hidden_states_1"},
    mask=AttentionMask("attention_mask", lambda mask: ((1 - mask) * _UNSEEN)[:, None]),
    checkpoint=None,
    reads_of=_reads_of,
    wordless=frozenset({GPT2}),
    encodes_alone=True,
    decode=_decode,
    makes="sound",
    recomputes=False,  # diffusers hands the masks of a block's attentions on in the wrong places
    settle=_settle,
    latent_size=_latent_size,
)
