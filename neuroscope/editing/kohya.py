"""LoRA files as kohya's scripts write them: the names that ComfyUI, A1111 and diffusers read, and what they show of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from torch import Tensor

from neuroscope.core.errors import InvalidInput
from neuroscope.pipeline.families import CheckpointNames, latent_size, uncompiled
from neuroscope.pipeline.graph import HookGraph


def checkpoint_names(graph: HookGraph) -> CheckpointNames:
    """How the tools that read such files call the model.

    Raises:
        InvalidInput: none of them runs it.
    """
    if graph.family.checkpoint is None:
        raise InvalidInput(f'no tool that reads kohya\'s files runs a {graph.family.name}; export it with format="diffusers"')
    return graph.family.checkpoint


def kohya_weights(graph: HookGraph, layers: Mapping[str, Tensor], biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under kohya's names, through diffusers' own conversion; alpha is the rank, so that the scale is 1.

    Modules are called by their paths in diffusers, with underscores, which all three tools map to their own names.

    Args:
        graph: the model.
        layers: `PATH.lora_A.weight` and `PATH.lora_B.weight` for each module's path.
        biases: what is added to the biases of modules, by path.

    Raises:
        InvalidInput: as `checkpoint_names`.
    """
    names, component = checkpoint_names(graph).modules, graph.family.component
    renamed = {f"{component}.{_renamed(path, names)}": value for path, value in layers.items()}
    made: dict[str, Tensor] = convert_state_dict_to_kohya(renamed)
    return made | {f"lora_{component}_{_renamed(path, names).replace('.', '_')}.diff_b": value for path, value in biases.items()}


def kohya_header(graph: HookGraph, title: str, name: str, rank: int) -> dict[str, str]:
    """What tools show of a file: kohya's `ss_` fields, and those of the ModelSpec.

    Args:
        graph: the model.
        title: the concept.
        name: under which a prompt asks for the file.
        rank: of all modules.
    """
    velocity = getattr(graph.pipe.scheduler.config, "prediction_type", None) == "v_prediction"
    config: Any = uncompiled(graph.denoiser).config
    version, architecture = checkpoint_names(graph).base(config, velocity)
    height, width = (size * graph.pipe.vae_scale_factor for size in latent_size(graph.pipe, uncompiled(graph.denoiser), None, None))
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
    }


def _renamed(path: str, names: Mapping[str, str]) -> str:
    module = next((each for each in names if path == each or path.startswith(f"{each}.")), None)
    return path if module is None else names[module] + path.removeprefix(module)
