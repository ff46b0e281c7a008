"""Labels: what an image was made of, kept with it, written into its PNG file as text, and said by the file's name."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from neuroscope.core import checks
from neuroscope.core.distribution import version
from neuroscope.core.errors import ForeignFile, InvalidFile
from neuroscope.core.intervention import Intervention
from neuroscope.generation.arguments import named_parameters, steps_of
from neuroscope.pipeline.graph import HookGraph

#: The texts of a label; each is a text chunk of the PNG file, lists and mappings as JSON.
FIELDS = ("prompt", "seed", "model", "settings", "interventions", "files", "neuroscope")
_AS_JSON = ("settings", "interventions", "files")
_LONGEST = 48


def settings_of(graph: HookGraph, generation: Mapping[str, Any]) -> dict[str, Any]:
    """How the pipeline is called: the given options, and what it takes by itself for steps, guidance and scheduler."""
    defaults = named_parameters(type(graph.pipe).__call__)
    guidance = defaults.get("guidance_scale")
    own = {} if guidance is None or guidance.default is inspect.Parameter.empty else {"guidance_scale": guidance.default}
    given = {name: _plain(value) for name, value in generation.items()}
    return {"num_inference_steps": steps_of(graph.pipe, generation), "scheduler": type(graph.pipe.scheduler).__name__} | own | given


def label(image: Image.Image, facts: Mapping[str, Any]) -> None:
    """Puts a label on an image: into `image.info`, and into the text of any PNG file that the image is saved to."""
    texts = {name: _text(name, value) for name, value in facts.items()}
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    image.info.update(texts)
    vars(image)["encoderinfo"] = {"pnginfo": chunks}


def label_made(image: Image.Image, graph: HookGraph, prompt: str, seed: int, changes: Sequence[Intervention], settings: Any) -> None:
    """Labels an image with what it was made of."""
    made = {"prompt": prompt, "seed": seed, "model": graph.model, "settings": settings}
    label(image, made | {"interventions": [repr(each) for each in changes], "neuroscope": version()})


def add_files(image: Image.Image, files: Sequence[str]) -> None:
    """Adds the names of the applied files to an image's label."""
    label(image, {name: image.info[name] for name in FIELDS if name in image.info} | {"files": list(files)})


def read_label(path: str | Path) -> dict[str, Any]:
    """The label of a PNG file.

    Raises:
        InvalidFile: there is no such file, or it is no image.
        ForeignFile: the image has no label.
    """
    try:
        with Image.open(checks.path("path", path)) as image:
            found = {name: text for name, text in getattr(image, "text", {}).items() if name in FIELDS}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for damaged files
        raise InvalidFile(f"{path} is no image that can be read: {error}; give a PNG file") from error
    if "neuroscope" not in found:
        raise ForeignFile(f"{path} does not say what it was made of; images that `neuroscope generate` makes do")
    try:
        return {name: json.loads(found[name]) if name in _AS_JSON else found[name] for name in FIELDS if name in found}
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} has a damaged label ({error}); make or copy it again") from error


def file_name(prompt: str, seed: int, applied: Sequence[str] = ()) -> str:
    """The name of an image's file: prompt, seed and what is applied, as in "a-red-star-seed0-no-van-gogh.png".

    A name always says the same, whatever else is made. A text of which the name leaves something out has six digits of its hash.
    """
    return "-".join([_slug(prompt), f"seed{seed}", *map(_slug, applied)]) + ".png"


def _slug(text: str) -> str:
    words = re.sub(r"[^a-zA-Z0-9]+", "-", text).strip("-")
    short = words[:_LONGEST].rstrip("-")
    if short.replace("-", " ") == text or short == text:
        return short
    return "-".join(filter(None, [short, hashlib.sha256(text.encode()).hexdigest()[:6]]))


def _text(name: str, value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if name in _AS_JSON else str(value)


def _plain(value: Any) -> Any:
    """An option as JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Image.Image):
        return f"an image of {value.width} × {value.height}"
    return type(value).__name__
