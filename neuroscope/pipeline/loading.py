"""Loading models by name: a hub id, a folder, a checkpoint file, or PREFIX:NAME of a collection that is registered as an entry point."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from neuroscope.core.errors import InvalidInput, closest, first_line
from neuroscope.pipeline.checkpoint import SUFFIXES, load_checkpoint
from neuroscope.pipeline.placement import DTYPES, OFFLOADS, footprint, place, placement

#: The entry points of collections: modules with `load(name)`, which gives a pipeline, and `path(name)`, the folder of a model.
GROUP = "neuroscope.models"


def load_pipeline(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offload: str = "none",
    loras: Iterable[str] = (),
    **source: str | None,
) -> Any:
    """A pipeline by name, on its device and in its number format.

    Args:
        model: such as "testbed:sd1", a folder of `save_pretrained`, a single .safetensors checkpoint, or a hub id.
        device: "auto" (CUDA's GPU, then Apple's, then the CPU), "cuda", "cuda:N", "mps" or "cpu".
        dtype: "auto" (float16 on a GPU, float32 on the CPU), "float16", "bfloat16" or "float32".
        offload: "none"; "model" keeps one part of the pipeline at a time on the GPU, "sequential" one module at a time.
        loras: files, folders or hub ids of LoRAs that are put on top, in order.
        **source: `variant` (of the weights' files, such as "fp16"; folders and hub ids), `revision` (hub ids) and `config` (a
            folder of `save_pretrained` with the configuration of a single checkpoint's model, whose weights are not read).

    Raises:
        InvalidInput: there is no such model or LoRA that can be reached or read, no such device, or an option that does not
            belong to this kind of model.
    """
    asked = placement(device, dtype, offload)
    given = {name: value for name, value in source.items() if value is not None}
    pipe = _opened(model, {"dtype": asked.dtype}, given)
    pipe.set_progress_bar_config(disable=True)
    loras = tuple(loras)
    for lora in loras:
        _put_on(pipe, lora)
    placed = place(pipe, asked)
    _LOADED[placed] = Recipe(model, asked.device, str(asked.dtype).removeprefix("torch."), offload, loras, tuple(given.items()))
    return placed


@dataclass(frozen=True)
class Recipe:
    """How a pipeline is loaded again in another process; a call gives the pipeline.

    Attributes:
        model: its name, as in `load_pipeline`; a folder or a file must be there under the same path.
        device: "cuda", "mps" or "cpu".
        dtype: the number format of its weights, such as "float16".
        offload: as in `load_pipeline`.
        loras: put on top, in order.
        source: the other options of `load_pipeline`, by name.
    """

    model: str
    device: str
    dtype: str
    offload: str = "none"
    loras: tuple[str, ...] = ()
    source: tuple[tuple[str, str], ...] = ()

    def __call__(self) -> Any:
        """The pipeline; raises InvalidInput as `load_pipeline`."""
        options = {"device": self.device, "dtype": self.dtype, "offload": self.offload}
        return load_pipeline(self.model, **options, loras=self.loras, **dict(self.source))


#: How pipelines were loaded here.
_LOADED: WeakKeyDictionary[Any, Recipe] = WeakKeyDictionary()


def recipe_of(pipe: Any) -> Recipe:
    """How another process loads a pipeline: as `load_pipeline` did, or by the name that diffusers noted in it.

    Where it runs, and in which number format, is read off the pipeline as it is now.

    Raises:
        InvalidInput: nothing says where the pipeline comes from, or it cannot be loaded in the state that it is in.
    """
    model, dtype, offload = (
        str(getattr(pipe.config, "_name_or_path", "") or ""),
        str(pipe.dtype).removeprefix("torch."),
        footprint(pipe).offload,
    )
    if why := _unloadable(model, dtype, offload):
        raise InvalidInput(
            f"workers cannot load this {type(pipe).__name__} again: {why}; give ns.Ray(pipeline=...) a function without arguments that "
            "makes it, or save it with pipe.save_pretrained(folder) and load that folder"
        )
    made = _LOADED.get(pipe) or Recipe(model, "", "")
    made = replace(made, device=pipe._execution_device.type, dtype=dtype, offload=offload)
    return replace(made, model=_absolute(made.model), loras=tuple(map(_absolute, made.loras)))


def _unloadable(model: str, dtype: str, offload: str) -> str:
    """Why a pipeline cannot be loaded again; nothing where it can."""
    if not model:
        return "it was made by hand, so nothing says where it comes from"
    if dtype not in DTYPES:
        return f"its weights are {dtype}, and models are loaded in {', '.join(DTYPES[1:])}"
    return "" if offload in OFFLOADS else f"its weights are offloaded by {offload}"


def _absolute(name: str) -> str:
    """A file's or folder's absolute path, as another process has another working directory; any other name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _opened(model: str, options: Mapping[str, Any], given: dict[str, str]) -> Any:
    """The pipeline as it is stored, on the CPU."""
    collection, name = _collection(model)
    if collection is not None:
        _refuse_others(given, (), f"{model} is the package's own")
        return collection.load(name).to(options["dtype"])
    path = Path(model)
    if path.suffix in SUFFIXES:
        _refuse_others(given, ("config",), f"{model} is a single file")
        return load_checkpoint(path, given.get("config"), **options)
    if path.is_dir():
        _refuse_others(given, ("variant",), f"{model} is a folder")
    _refuse_others(given, ("variant", "revision"), f"{model} has a configuration of its own")
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(model, **options, **given)
    except Exception as error:  # a damaged folder can make diffusers raise anything
        raise InvalidInput(
            f"the model {model!r} cannot be loaded: {first_line(error)} Give testbed:NAME, a folder of save_pretrained, a .safetensors "
            "checkpoint, or a hub id"
        ) from error


def _refuse_others(given: Mapping[str, str], known: tuple[str, ...], why: str) -> None:
    """Raises InvalidInput for an option that this kind of model would ignore."""
    for name in given:
        if name not in known:
            raise InvalidInput(f"{name}={given[name]!r} would be ignored: {why}; leave it out")


def _put_on(pipe: Any, lora: str) -> None:
    """Puts a LoRA on top of a pipeline."""
    if not hasattr(pipe, "load_lora_weights"):
        raise InvalidInput(f"{type(pipe).__name__} takes no LoRA ({lora}); leave it out")
    try:
        pipe.load_lora_weights(lora)
    except Exception as error:  # whatever diffusers and peft raise of a file that does not fit
        raise InvalidInput(f"the LoRA {lora!r} cannot be put on {type(pipe).__name__}: {first_line(error)}") from error


def resolve(model: str) -> str | Path:
    """The folder of a collection's model, such as "testbed:clip"; any other folder or hub id as it is."""
    collection, name = _collection(model)
    return model if collection is None else collection.path(name)


def _collection(model: str) -> tuple[Any, str]:
    """The collection that a name begins with, and the rest of the name; None and the whole name where it begins with none."""
    prefix, colon, name = model.partition(":")
    if not colon or Path(model).exists():
        return None, model
    known = {each.name: each for each in importlib.metadata.entry_points(group=GROUP)}
    if prefix not in known:
        near = closest(prefix, known)
        if near:
            raise InvalidInput(f"{prefix!r} is no collection of models{near}")
        return None, model
    return known[prefix].load(), name
