"""Loading models by name: a hub id, a folder, or PREFIX:NAME of a collection that is registered as an entry point."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from neuroscope.core.errors import InvalidInput, closest

#: The entry points of collections: modules with `load(name)`, which gives a pipeline, and `path(name)`, the folder of a model.
GROUP = "neuroscope.models"


def load_pipeline(model: str) -> Any:
    """A pipeline by name, such as "testbed:sd1", a folder of `save_pretrained` or a hub id.

    Raises:
        InvalidInput: there is no such model of a collection, folder or hub id that can be reached.
    """
    collection, name = _collection(model)
    if collection is not None:
        return collection.load(name)
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(model)
    except Exception as error:  # a damaged folder can make diffusers raise anything
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidInput(
            f"the model {model!r} cannot be loaded: {first} Give testbed:NAME, a folder of save_pretrained, or a hub id"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
