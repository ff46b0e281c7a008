"""Checkpoints as they were published first, before diffusers: the names that Stable Diffusion v1's own code gives to its tensors.

Written after the modules of CompVis' repository (`openaimodel.UNetModel`, `model.Encoder` and `model.Decoder`).
"""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {"conv_norm_out": "norm_out", "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_original(pipe: Any, path: Path) -> Path:
    """Writes a pipeline of Stable Diffusion v1 as one checkpoint file."""
    tensors = {f"model.diffusion_model.{_unet(name)}": each for name, each in pipe.unet.state_dict().items()}
    tensors |= {f"first_stage_model.{_vae(name, pipe)}": _as_convolution(name, each) for name, each in pipe.vae.state_dict().items()}
    tensors |= {f"cond_stage_model.transformer.text_model.{name}": each for name, each in pipe.text_encoder.state_dict().items()}
    save_file({name: each.contiguous() for name, each in tensors.items()}, path)
    return path


def _unet(name: str) -> str:
    """Four blocks down and up; a resnet and an attention share a numbered block."""
    block = r"_blocks\.(\d)\."
    name = re.sub(f"down{block}" + r"(resnets|attentions)\.(\d)", lambda m: f"input_blocks.{_number(m) + 1}.{_place(m[2])}", name)
    name = re.sub(f"down{block}" + r"downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op", name)
    name = re.sub(f"up{block}" + r"(resnets|attentions)\.(\d)", lambda m: f"output_blocks.{_number(m)}.{_place(m[2])}", name)
    name = re.sub(f"up{block}" + r"upsamplers\.0", lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{1 if m[1] == '0' else 2}", name)
    name = _renamed(name, _UNET)
    return _renamed(name, _UNET_RESNET) if re.match(r"(in|out)put_blocks\.\d+\.0|middle_block\.[02]", name) else name


def _number(found: re.Match[str]) -> int:
    return 3 * int(found[1]) + int(found[3])


def _place(kind: str) -> int:
    return ("resnets", "attentions").index(kind)


def _vae(name: str, pipe: Any) -> str:
    last = len(pipe.vae.config.block_out_channels) - 1
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    if "mid_block.attentions.0" in name:
        return _renamed(name.replace("mid_block.attentions.0", "mid.attn_1"), _VAE_ATTENTION)
    return _renamed(name, _VAE).replace("conv_shortcut", "nin_shortcut")


def _as_convolution(name: str, value: Tensor) -> Tensor:
    """The autoencoder's attention was made of 1 × 1 convolutions."""
    return value[:, :, None, None] if "attentions" in name and value.ndim == 2 else value


def _renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", name)
    return name
