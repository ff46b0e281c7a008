"""What other tools call a UNet's modules, and how they load a LoRA file: written from the published maps, without neuroscope.

The original checkpoints of Stable Diffusion number their blocks through: `input_blocks.0` is the first convolution, every level then
has its residual blocks (`.0`) with their transformers (`.1`) and, but for the last level, one that halves the resolution;
`middle_block` has a residual block, a transformer and a residual block; every level of `output_blocks` has one more than of
`input_blocks`, and the last of them doubles the resolution.
"""

import re
from typing import Any

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
FACTORS = ("lora_down.weight", "lora_up.weight", "alpha", "diff_b")


def original(config: Any, module: str) -> str:
    """What the original checkpoint calls a module of diffusers' UNet."""
    if module in OUTSIDE:
        return OUTSIDE[module]
    each = config.layers_per_block + 1  # modules of a level, and the one that changes the resolution
    level, kind, number, rest = re.fullmatch(r"(.+?)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", module).groups()
    rest = RESNET.get(rest, rest) if kind == "resnets" else rest
    if level == "mid_block":
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{rest}"
    side, depth = level.split(".")
    if side == "down_blocks":
        block = 1 + each * int(depth) + (config.layers_per_block if kind == "downsamplers" else int(number))
        return f"input_blocks.{block}.0.op" if kind == "downsamplers" else f"input_blocks.{block}.{int(kind == 'attentions')}.{rest}"
    block = each * int(depth) + (config.layers_per_block if kind == "upsamplers" else int(number))
    if kind == "upsamplers":
        return f"output_blocks.{block}.{1 + ('CrossAttn' in config.up_block_types[int(depth)])}.{rest}"
    return f"output_blocks.{block}.{int(kind == 'attentions')}.{rest}"


def original_state(unet: Any) -> dict[str, Tensor]:
    """A UNet's parameters under the names of the original checkpoint."""
    named = ((name.rpartition("."), each) for name, each in unet.state_dict().items())
    return {f"{original(unet.config, path)}.{kind}": each.clone() for (path, _, kind), each in named}


def originals(unet: Any) -> dict[str, str]:
    """By its path, what the original checkpoint calls each of a UNet's modules that have parameters."""
    return {path: original(unet.config, path) for path in dict.fromkeys(name.rpartition(".")[0] for name in unet.state_dict())}


def comfyui_keys(unet: Any) -> dict[str, str]:
    """The original module behind what ComfyUI accepts before `.lora_down.weight`: original and diffusers' names, with underscores."""
    names = originals(unet).items()
    return {f"lora_unet_{each.replace('.', '_')}": name for path, name in names for each in (name, path)}


def comfyui_load(unet: Any, file: dict[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """The parameters with a LoRA at strength 1, as ComfyUI's loader computes them, and the keys that it would not load."""
    state, left = original_state(unet), set(file)
    for key, path in comfyui_keys(unet).items():
        if f"{key}.lora_up.weight" in file:
            down, up = (file[f"{key}.{name}.weight"].float() for name in ("lora_down", "lora_up"))
            weight = state[f"{path}.weight"]
            weight += (file[f"{key}.alpha"].item() / len(down) * (up @ down)).to(weight.dtype)
            if f"{key}.diff_b" in file:
                state[f"{path}.bias"] += file[f"{key}.diff_b"].to(weight.dtype)
            left -= {f"{key}.{name}" for name in FACTORS}
    return state, left


def a1111_module(key: str) -> tuple[str, ...]:
    """What A1111 looks a key up as, among its modules' original names with underscores, one after the other."""
    down = re.fullmatch(r"lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)", key)
    middle = re.fullmatch(r"lora_unet_mid_block_attentions_(\d+)_(.+)", key)
    up = re.fullmatch(r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)", key)
    found = key
    if down:
        found = f"diffusion_model_input_blocks_{1 + 3 * int(down[1]) + int(down[2])}_1_{down[3]}"
    elif middle:
        found = f"diffusion_model_middle_block_1_{middle[2]}"
    elif up:
        found = f"diffusion_model_output_blocks_{3 * int(up[1]) + int(up[2])}_1_{up[3]}"
    return found, key.replace("lora_unet", "diffusion_model")


def kohya_modules(unet: Any, xl: bool) -> set[str]:
    """The modules that kohya's scripts make for LoRA: linear layers in transformers, named as in the UNet that they run.

    That is diffusers' for Stable Diffusion v1 and v2, and the original one for SDXL, for which they rename diffusers' keys first.
    """
    linear = [path for path, each in unet.named_modules() if ".attentions." in path and isinstance(each, torch.nn.Linear)]
    return {f"lora_unet_{(original(unet.config, path) if xl else path).replace('.', '_')}" for path in linear}


def kohya_keys(unet: Any, keys: set[str], xl: bool) -> set[str]:
    """Keys as kohya's scripts look for them: for SDXL, the part that names a block is replaced by the original one."""
    if not xl:
        return keys
    places = {path for path, _ in unet.named_modules() if re.fullmatch(r".+\.attentions\.\d+", path)}
    renamed = {path.replace(".", "_"): original(unet.config, f"{path}.x").removesuffix(".x").replace(".", "_") for path in places}
    block = re.compile(r"(?:down_blocks_\d+|mid_block|up_blocks_\d+)_attentions_\d+(?=_)")
    return {block.sub(lambda found: renamed[found[0]], key) for key in keys}
