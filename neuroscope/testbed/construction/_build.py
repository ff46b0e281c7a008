"""Building constructed pipelines, and what is known of those that were built."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from diffusers import DiffusionPipeline

from neuroscope.core.errors import InvalidInput
from neuroscope.testbed.construction.blocking import plant_in
from neuroscope.testbed.construction.modules import TextModules
from neuroscope.testbed.construction.pipelines import BUILDERS
from neuroscope.testbed.construction.plants import Planted
from neuroscope.testbed.construction.proof import Proof, prove

FAMILIES = tuple(BUILDERS)
_BUILT: WeakKeyDictionary[Any, tuple[Planted, TextModules]] = WeakKeyDictionary()


def build(family: str, plant: str = "layer", seed: int = 0) -> Any:
    """A random pipeline of a family's published topology, small in width, in which a concept passes where it was planted.

    Elsewhere the weights of keys and values (and of the pooled text) are projected onto the orthogonal complement of what
    tells the concept's prompts apart, in what each module reads of them through the pipeline's own text encoders.

    Args:
        family: "sd1", "sd2", "openjourney", "sdxl", "if-1", "if-2", "pixart", "sana", "audioldm2", "stable-audio",
            "hunyuandit", "ltx", "wan", "animatediff", "sd3" or "flux".
        plant: see `PLANTS`.
        seed: of the weights and of the plant's place.

    Raises:
        InvalidInput: an unknown family or plant, or a plant that the family cannot hold.
    """
    pipe, record, text = plant_in(family, plant, seed)
    pipe.register_to_config(_name_or_path=f"testbed:{family}/{plant}/{seed}")
    _BUILT[pipe] = (record, text)
    return pipe


def planted(pipe: Any) -> Planted:
    """What is planted in a constructed pipeline.

    Raises:
        InvalidInput: the pipeline was not made by `build`.
    """
    return _built(pipe)[0]


def verify(pipe: Any) -> Proof:
    """Proves what is planted: in the weights, and in what swapping the prompts of single modules does to the images.

    Raises:
        InvalidInput: the pipeline was not made by `build`.
    """
    return prove(pipe, *_built(pipe))


def _built(pipe: Any) -> tuple[Planted, TextModules]:
    if not isinstance(pipe, DiffusionPipeline) or pipe not in _BUILT:
        raise InvalidInput(f"this {type(pipe).__name__} was not made by testbed.build, so nothing is known of it; build one")
    return _BUILT[pipe]
