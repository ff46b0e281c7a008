"""Exporting interventions as LoRA files, which other tools read without neuroscope."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import functional

from neuroscope.core import checks
from neuroscope.core.errors import InvalidFile, InvalidInput, UnsupportedModel, choose, counted
from neuroscope.core.intervention import Intervention
from neuroscope.core.results.scores import Neurons
from neuroscope.core.sharing.pushing import LORA
from neuroscope.core.storage import write_beside
from neuroscope.editing.constants import constant_at
from neuroscope.editing.factors import balanced
from neuroscope.editing.kohya import checkpoint_names, kohya_header, kohya_weights
from neuroscope.editing.updates import LinearUpdate, updates_with_constants
from neuroscope.interventions import ContextMap, NeuronMask
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.weights import has_bias

LoraFormat = Literal["diffusers", "kohya"]
LoraDtype = Literal["float32", "float16", "bfloat16"]


@torch.no_grad()
def export_lora(
    graph: HookGraph,
    changes: Intervention | Sequence[Intervention],
    path: str | os.PathLike[str],
    *,
    format: LoraFormat = "diffusers",
    dtype: LoraDtype = "float32",
) -> Path:
    """Writes the exact change of the weights as a LoRA file, for diffusers alone or for ComfyUI, A1111 and diffusers.

    Exact up to the rounding of `dtype`: edits of the context, and masks made with `rows="all"`. A mask's fill adds a constant.
    At keys that has no effect, and is left out. In a module that has a bias it becomes one, which of kohya's files ComfyUI
    alone reads (a warning says so). At values it becomes a linear map of the text, of rank 1, where the text encoder ends in
    a LayerNorm with a gain and a shift (Stable Diffusion v1 and v2); its error is at most 0.1 % of the fill.

    Args:
        graph: the model.
        changes: one intervention, or several to be composed as in `apply`; their ranks add up.
        path: a file that ends in `.safetensors`, or a folder, which is made if it is not there.
        format: "diffusers" for `pipe.load_lora_weights(folder)`, which needs peft; "kohya" for ComfyUI, A1111 and diffusers.
        dtype: of the numbers in the file.

    Returns:
        The file; in a folder, `pytorch_lora_weights.safetensors`, or kohya's with the folder's name.

    Raises:
        InvalidInput: a change that a LoRA cannot hold, a fill without an exact map, a model that kohya's tools do not run, or
            numbers too large for `dtype`.
        InvalidFile: the file cannot be written; nothing is left behind.
        UnsupportedModel: the pipeline reads no LoRA files.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    if not hasattr(graph.pipe, "save_lora_weights"):
        raise UnsupportedModel(f"{type(graph.pipe).__name__} reads no LoRA files; write the change into its weights with ns.fold instead")
    given = checks.several("changes", changes, Intervention, 'ns.load("edit.safetensors")')
    number_format: torch.dtype = getattr(torch, choose("dtype", dtype, get_args(LoraDtype)))
    file = lora_file(path, format)
    if not given:
        raise InvalidInput("there is nothing to export; give at least one intervention")
    if format == "kohya":
        checkpoint_names(graph)
    updates = _with_linear_constants(graph, updates_with_constants(graph, given), number_format)
    lora = _lora_of(updates, number_format)
    _make_folder(file.parent)
    if format == "kohya":
        return _write_kohya(graph, lora, file, _title(given))
    return _write_diffusers(graph, lora, file)


def lora_file(path: str | os.PathLike[str], format: str) -> Path:
    """The file that `export_lora` writes.

    Raises:
        InvalidInput: a path that no file can have, or an unknown format.
    """
    choose("format", format, get_args(LoraFormat))
    given = checks.path("path", path)
    if given.suffix == ".safetensors":
        return given
    return given / (LORA if format == "diffusers" else f"{given.resolve().name}.safetensors")


class _Lora(NamedTuple):
    """The factors of all modules, as peft names them, the biases of some by path, and the one rank."""

    layers: dict[str, Tensor]
    biases: dict[str, Tensor]
    rank: int


def _with_linear_constants(graph: HookGraph, updates: Mapping[str, LinearUpdate], dtype: torch.dtype) -> dict[str, LinearUpdate]:
    """The updates with constants of modules without a bias as one more rank."""
    root = uncompiled(graph.denoiser)
    biases = {path: each.bias for path, each in updates.items() if each.bias is not None and not has_bias(root, path)}
    constants = {path: bias for path, bias in biases.items() if bias.any()}
    made = dict(updates) | {path: replace(updates[path], bias=None) for path in biases}
    if not constants:
        return made
    sites = [site.path for site in graph.sites.where(role="value") if site.module in constants]
    row = constant_at(graph, graph.sites.at(sites), dtype)[None]
    for path, bias in constants.items():
        left, right = torch.cat([made[path].left, bias[:, None]], dim=1), torch.cat([made[path].right, row])
        made[path] = replace(made[path], left=left, right=right)
    return made


def _lora_of(updates: Mapping[str, LinearUpdate], dtype: torch.dtype) -> _Lora:
    """One rank for all modules gives each of them scale 1."""
    factors = {path: balanced(update.left, update.right) for path, update in updates.items()}
    rank = max([1, *(len(right) for _, right in factors.values())])
    layers: dict[str, Tensor] = {}
    for path, (left, right) in factors.items():
        layers[f"{path}.lora_A.weight"] = _rounded(path, functional.pad(right, (0, 0, 0, rank - len(right))), dtype)
        layers[f"{path}.lora_B.weight"] = _rounded(path, functional.pad(left, (0, rank - left.shape[1])), dtype)
    biases = {path: _rounded(path, each.bias, dtype) for path, each in updates.items() if each.bias is not None and each.bias.any()}
    return _Lora(layers, biases, rank)


def _rounded(path: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    made = values.to(dtype).contiguous()
    if not torch.isfinite(made).all():
        raise InvalidInput(f'the change of {path} is too large for {str(dtype).removeprefix("torch.")}; export it with dtype="float32"')
    return made


def _title(changes: Sequence[Intervention]) -> str:
    """The concepts, or what the changes are."""
    sources = [each.neurons if isinstance(each, NeuronMask) else each for each in changes]
    concepts = [each.provenance.concept for each in sources if isinstance(each, Neurons | ContextMap)]
    return ", ".join(dict.fromkeys(each for each in concepts if each)) or ", ".join(dict.fromkeys(each.kind for each in changes))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidFile(f"{folder} cannot be written: {reason}; nothing was saved. Choose another place") from error


def _write_kohya(graph: HookGraph, lora: _Lora, file: Path, title: str) -> Path:
    weights = kohya_weights(graph, lora.layers, lora.biases)
    header = kohya_header(graph, title, file.stem, lora.rank)
    write_beside(file, to_bytes(weights, {"format": "pt"} | header))
    if lora.biases:
        warnings.warn(
            f"{file} changes the biases of {counted(len(lora.biases), 'module')} (.diff_b), which ComfyUI reads, A1111 ignores and "
            "diffusers refuses; "
            'for those make the mask with fill=0, or for diffusers export it with format="diffusers"',
            UserWarning,
            stacklevel=3,
        )
    return file


def _write_diffusers(graph: HookGraph, lora: _Lora, file: Path) -> Path:
    """Through diffusers' own naming of the layers; the file itself as all files are written."""

    def put(weights: dict[str, Tensor], path: str) -> None:
        write_beside(Path(path), to_bytes(weights, {"format": "pt"}))

    layers = dict(lora.layers)
    if lora.biases:  # peft gives a bias to all modules or to none
        paths = [name.removesuffix(".lora_B.weight") for name in layers if name.endswith(".lora_B.weight")]
        none = {path: torch.zeros_like(layers[f"{path}.lora_B.weight"][:, 0]) for path in paths}
        layers |= {f"{path}.lora_B.bias": values for path, values in (none | lora.biases).items()}
    graph.pipe.save_lora_weights(file.parent, weight_name=file.name, save_function=put, **{f"{graph.family.component}_lora_layers": layers})
    return file
