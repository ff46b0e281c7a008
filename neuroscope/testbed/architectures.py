"""The small architectures of the testbed's parts, untrained: an autoencoder, and a CLIP with its image processor."""

from __future__ import annotations

from diffusers import AutoencoderKL
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from neuroscope.testbed.vocabulary import LENGTH
from neuroscope.testbed.world import SIZE

#: Channels of CLIP's two towers.
WIDTH = 96


def build_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder with a fourfold downsampling."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 32, 64],
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=SIZE,
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP: text and vision towers of three layers, 96 channels wide, with a 64-channel shared space."""
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 64}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = shared | special | {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=shared | {"image_size": SIZE, "patch_size": 8}, projection_dim=64))


def build_image_processor() -> CLIPImageProcessorPil:
    """The preprocessing of the world's images for CLIP: no resizing, CLIP's own normalisation."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
