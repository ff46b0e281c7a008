"""Images that a pipeline is given, such as one to start from: each goes to every row of a batch.

Pipelines differ in how they take one image for several prompts: most repeat it, some want one for each prompt, and pipelines with
several control nets or adapters want one for each net.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from neuroscope.core.errors import InvalidInput, counted

#: Components that may be several nets, each of which reads an image of its own.
_NETS = ("controlnet", "adapter")
#: Arguments whose images pass beside the hooked projections.
_BESIDE = ("ip_adapter_image", "ip_adapter_image_embeds")


def spread_images(pipe: Any, generation: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A pipeline's options in which every image is given to each of so many rows.

    Args:
        pipe: the pipeline.
        generation: its options; an image is given once for all rows, and once for each net where several nets read one.
        rows: the prompts of the batch.

    Raises:
        InvalidInput: several images where all rows share one, another number of images than nets, or an IP-Adapter's image.
    """
    if given := [name for name in _BESIDE if generation.get(name) is not None]:
        raise InvalidInput(f"{given[0]} is for an IP-Adapter, whose image tokens pass beside the hooked projections; leave it out")
    found = dict(generation)
    for name in image_arguments(generation):
        if (nets := _nets(pipe, name)) is not None:
            found[name] = _for_nets(name, generation[name], rows, *nets)
        elif generation.get("padding_mask_crop") is None:  # the pipeline crops one image, which it then repeats itself
            found[name] = _repeated(_only(name, generation[name]), rows)
    return found


def image_arguments(generation: Mapping[str, Any]) -> list[str]:
    """The names of the options that hold images, by their names and what they hold."""
    return [name for name, value in generation.items() if "image" in name and _is_images(value)]


def _is_images(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_images, value))
    return isinstance(value, Image | np.ndarray | Tensor)


def _nets(pipe: Any, name: str) -> tuple[int, bool] | None:
    """How many nets read an argument's images, and whether each of them wants one image for each prompt; None for a single reader."""
    component = next((each for each in _NETS if getattr(pipe, each, None) is not None), None)
    if component is None or name != _argument_of_nets(pipe):
        return None
    nets = getattr(getattr(pipe, component), "nets" if component == "controlnet" else "adapters", None)
    return None if nets is None else (len(nets), component == "adapter")


def _argument_of_nets(pipe: Any) -> str:
    """The name under which a pipeline takes its nets' images."""
    return "control_image" if "control_image" in type(pipe).__call__.__annotations__ else "image"


def _for_nets(name: str, value: Any, rows: int, nets: int, each_prompt: bool) -> list[Any]:
    """One image for each net, for every row."""
    if not isinstance(value, list | tuple) or len(value) != nets:
        count = len(value) if isinstance(value, list | tuple) else 1
        raise InvalidInput(
            f"{name} holds {counted(count, 'image')}, and the pipeline has {counted(nets, 'net')}; give a list with one image for each net"
        )
    single = [_only(f"{name}[{net}]", image) for net, image in enumerate(value)]
    return [_repeated(image, rows) for image in single] if each_prompt else single


def _only(name: str, value: Any) -> Any:
    """The one image of an argument; of arrays and tensors as a batch of one.

    Raises:
        InvalidInput: there are several.
    """
    if isinstance(value, list | tuple):
        _expect_one(name, len(value))
        return _only(name, value[0])
    if isinstance(value, Image):
        return value
    if isinstance(value, np.ndarray):
        batch: Any = value[None, ..., None] if value.ndim == 2 else value[None] if value.ndim == 3 else value
    else:
        batch = value[None, None] if value.ndim == 2 else value[None] if value.ndim == 3 else value
    _expect_one(name, len(batch))
    return batch


def _expect_one(name: str, count: int) -> None:
    if count != 1:
        raise InvalidInput(f"{name} holds {counted(count, 'image')}, and every image that is made is given the same one; give one")


def _repeated(image: Any, rows: int) -> Any:
    """One image for each row."""
    if isinstance(image, Image):
        return [image] * rows
    return image.expand(rows, *image.shape[1:]) if isinstance(image, Tensor) else np.repeat(image, rows, axis=0)
