"""Loading a pipeline from a single checkpoint file, as tools for making images share them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from neuroscope.core.errors import InvalidInput, first_line

#: What names of checkpoint files end in; those that hold pickles are refused.
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
#: What names of tensors in a checkpoint of a whole model begin with.
_DENOISERS = ("model.diffusion_model.", "double_blocks.", "joint_blocks.")


def load_checkpoint(path: Path, config: str | None = None, **options: Any) -> Any:
    """The pipeline of a .safetensors checkpoint, by diffusers' `from_single_file` of the class that its configuration names.

    Args:
        path: the file.
        config: a folder of `save_pretrained` with the configuration; by default the hub's for the kind of model that diffusers
            finds the file to hold.
        **options: for `from_single_file`, such as `dtype`.

    Raises:
        InvalidInput: a file that is no checkpoint, a configuration that cannot be reached, or one that does not fit.
    """
    import diffusers

    _check_file(path)
    folder = config or _published_config(path)
    try:
        index = diffusers.DiffusionPipeline.load_config(folder)
        kind = getattr(diffusers, str(index["_class_name"]))
    except Exception as error:  # whatever the hub's client raises without a network, and diffusers of a folder
        advice = "a folder of save_pretrained with model_index.json" if config else "the folder of such a model with --config (config=)"
        raise InvalidInput(
            f"{path} holds weights alone, and the configuration {folder!r} that belongs to them cannot be read "
            f"({type(error).__name__}); give {advice}"
        ) from error
    try:
        pipe = kind.from_single_file(str(path), config=folder, local_files_only=config is not None, **options)
    except Exception as error:  # whatever diffusers raises of weights that do not fit the configuration
        raise InvalidInput(
            f"{path} cannot be loaded as the {kind.__name__} of {folder!r}: {first_line(error)}; give the configuration that belongs to it "
            "with --config (config=)"
        ) from error
    pipe.register_to_config(_name_or_path=str(path))
    return pipe


def _check_file(path: Path) -> None:
    """Raises InvalidInput unless a file holds the tensors of a whole model."""
    if not path.is_file():
        raise InvalidInput(
            f"there is no file {path}; give testbed:NAME, a folder of save_pretrained, a .safetensors checkpoint, or a hub id"
        )
    if path.suffix != ".safetensors":
        raise InvalidInput(
            f"{path} may hold a pickle, which can run any code, and is not opened; give the same model as .safetensors, or a folder"
        )
    try:
        with safe_open(path, "pt") as file:
            names, notes = list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{path} is no safetensors file that can be read: {error}; download it again") from error
    if "neuroscope" in notes:
        kind = json.loads(notes["neuroscope"]).get("kind", "result")
        raise InvalidInput(f"{path} holds a {kind} of neuroscope, and no model; give it where interventions or scores are taken")
    if any("lora" in name for name in names):
        raise InvalidInput(f"{path} holds a LoRA, and no model; give the model that it belongs to, and the file with --lora (loras=)")
    if not any(name.startswith(_DENOISERS) for name in names):
        first = f"its first tensor is {names[0]!r}" if names else "it is empty"
        raise InvalidInput(f"{path} is no checkpoint of a whole model: {first}; give a file with a denoiser, text encoder and autoencoder")


def _published_config(path: Path) -> str:
    """The hub id of the configuration that fits a checkpoint."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    found: str = fetch_diffusers_config(load_single_file_checkpoint(str(path)))["pretrained_model_name_or_path"]
    return found
