"""Exporting interventions as a standard LoRA file, which diffusers reads without neuroscope."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.errors import InvalidFile, InvalidInput, UnsupportedModel
from neuroscope.core.intervention import Intervention
from neuroscope.core.storage import write_beside
from neuroscope.editing.factors import balanced
from neuroscope.editing.updates import updates_of
from neuroscope.pipeline.graph import HookGraph

FILE = "pytorch_lora_weights.safetensors"


@torch.no_grad()
def export_lora(graph: HookGraph, changes: Intervention | Sequence[Intervention], folder: str | os.PathLike[str]) -> Path:
    """Writes the exact change of the weights as a LoRA that `pipe.load_lora_weights(folder)` reads.

    Reading it is diffusers' own, and needs peft: `pip install '.[lora]'` in a clone of neuroscope.

    Exact up to float32: edits of the context, and masks that switch neurons off or scale them. A mask with a fill other
    than zero adds a constant, which a LoRA's two factors cannot hold (at keys a constant has no effect, and is left out).

    Args:
        graph: the model.
        changes: one intervention, or several to be composed as in `apply`.
        folder: where `pytorch_lora_weights.safetensors` goes; it is made if it is not there.

    Returns:
        The file.

    Raises:
        InvalidInput: a change that a LoRA cannot hold.
        InvalidFile: the folder cannot be written; nothing is left behind.
        UnsupportedModel: the pipeline reads no LoRA files.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    if not hasattr(graph.pipe, "save_lora_weights"):
        raise UnsupportedModel(f"{type(graph.pipe).__name__} reads no LoRA files; write the change into its weights with ns.fold instead")
    given = checks.several("changes", changes, Intervention, 'ns.load("edit.safetensors")')
    folder = checks.path("folder", folder)
    if not given:
        raise InvalidInput("there is nothing to export; give at least one intervention")
    updates = updates_of(graph, given)
    for path, update in updates.items():
        if update.bias is not None and update.bias.any():
            raise InvalidInput(
                f"the mask's fill adds a constant behind {path}, which a LoRA cannot hold; fold it, or make the mask without a fill"
            )
    factors = {path: balanced(update.left, update.right) for path, update in updates.items()}
    rank = max(len(right) for _, right in factors.values())  # one rank for all modules gives each of them scale 1
    layers: dict[str, Tensor] = {}
    for path, (left, right) in factors.items():
        layers[f"{path}.lora_A.weight"] = torch.nn.functional.pad(right, (0, 0, 0, rank - len(right))).float().contiguous()
        layers[f"{path}.lora_B.weight"] = torch.nn.functional.pad(left, (0, rank - left.shape[1])).float().contiguous()
    return _write(graph, layers, Path(folder))


def _write(graph: HookGraph, layers: dict[str, Tensor], folder: Path) -> Path:
    """Through diffusers' own naming of the layers; the file itself as all files are written."""

    def put(weights: dict[str, Tensor], path: str) -> None:
        write_beside(Path(path), to_bytes(weights, {"format": "pt"}))

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidFile(f"{folder} cannot be written: {reason}; nothing was saved. Choose another place") from error
    graph.pipe.save_lora_weights(folder, save_function=put, **{f"{graph.family.component}_lora_layers": layers})
    return folder / FILE
