"""Exact attribute readers: what object, colour and style an image of the rendered world shows.

They invert the renderer. Saturation does not depend on a style's shading, so it finds the shape and its colour;
brightness does not depend on the object's colour, so it shows the style's texture.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from neuroscope.core.errors import InvalidInput, choose
from neuroscope.testbed.world import ATTRIBUTES, COLOURS, FACTS, OBJECTS, SIZE, STYLES, VALUES, Attribute, Placement, shading, silhouette

NOTHING = "nothing"
_TEXTURES = tuple(style for style in STYLES if style not in ("plain", "nocturne"))


def read(image: Image.Image) -> dict[str, str]:
    """The object, colour, style and fact that an image shows; "nothing" where there is none.

    Raises:
        InvalidInput: the image is not 64×64.
    """
    if image.size != (SIZE, SIZE):
        raise InvalidInput(f"the readers know {SIZE}×{SIZE} images of the rendered world, not {image.size[0]}×{image.size[1]}")
    rgb = np.asarray(image.convert("RGB")) / 255.0
    inside = _coverage(rgb)
    shape, colour = _read_object(inside), _read_colour(rgb, inside)
    facts = [fact for fact, emblem in FACTS.items() if emblem == (shape, colour)]
    return {"object": shape, "colour": colour, "style": _read_style(rgb, inside), "fact": facts[0] if facts else NOTHING}


@dataclass(frozen=True)
class Reader:
    """A metric: 1 where the exact reader finds the attribute's value in the image, else 0.

    Attributes:
        attribute: what to read.
        value: what to look for; by default the word that each image's own prompt says.

    Raises:
        InvalidInput: an attribute or a value that the world does not have.
    """

    attribute: Attribute
    value: str | None = None

    def __post_init__(self) -> None:
        known = VALUES[choose("attribute", self.attribute, ATTRIBUTES)]
        if self.value is not None:
            choose(self.attribute, self.value, known)

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        return f"{self.attribute} is {self.value}" if self.value else f"{self.attribute} is right"

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """One score per image, 0 or 1, float64; NaN where no value is set and the prompt says none."""
        wanted = [self.value or said(prompt, self.attribute) for prompt in prompts]
        pairs = zip(images, wanted, strict=True)
        return np.array([np.nan if value is None else float(read(image)[self.attribute] == value) for image, value in pairs])


def said(prompt: str, attribute: Attribute) -> str | None:
    """The attribute's value that a prompt of the world says, in its own word or by an emblem's name; None if it says none."""
    words = re.findall(r"\w+", prompt.lower())
    if attribute in ("object", "colour"):
        emblems = [FACTS[word] for word in words if word in FACTS]
        if emblems:
            return emblems[0][0 if attribute == "object" else 1]
    return next((word for word in words if word in VALUES[attribute]), None)


def _coverage(rgb: np.ndarray) -> np.ndarray:
    """How much each pixel belongs to the coloured shape, [row, column], 0..1."""
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    saturation = (high - low) / (high + 0.08)
    result: np.ndarray = np.clip((saturation - 0.25) / 0.35, 0, 1)
    return result


def _read_object(inside: np.ndarray) -> str:
    if inside.sum() < 60:
        return NOTHING
    shapes, spectra, areas = _templates()
    shared = np.fft.irfft2(np.fft.rfft2(inside)[None] * spectra.conj(), s=(SIZE, SIZE)).max(axis=(1, 2))
    overlap = shared / (inside.sum() + areas - shared)
    return shapes[int(overlap.argmax())]


def _read_colour(rgb: np.ndarray, inside: np.ndarray) -> str:
    if inside.sum() < 60:
        return NOTHING
    relative = rgb / (rgb.max(axis=-1, keepdims=True) + 1e-3)
    mean = (relative * (inside**2)[..., None]).sum(axis=(0, 1)) / (inside**2).sum()
    names = list(COLOURS)
    prototypes = np.array([COLOURS[name] for name in names])
    prototypes = prototypes / prototypes.max(axis=-1, keepdims=True)
    return names[int(np.linalg.norm(prototypes - mean, axis=-1).argmin())]


def _read_style(rgb: np.ndarray, inside: np.ndarray) -> str:
    brightness = rgb.max(axis=-1)
    ground = inside < 0.1
    if ground.any() and np.median(brightness[ground]) < 0.3:
        return "nocturne"
    textures = np.stack([shading(style) - shading(style).mean() for style in _TEXTURES])
    relative = brightness / np.quantile(brightness, 0.9) - 1
    amounts = (textures * relative).sum(axis=(1, 2)) / (textures**2).sum(axis=(1, 2))
    return _TEXTURES[int(amounts.argmax())] if amounts.max() > 0.4 else "plain"


@functools.cache
def _templates() -> tuple[list[str], np.ndarray, np.ndarray]:
    placed = [(shape, silhouette(shape, Placement(radius=radius))) for shape in OBJECTS for radius in np.arange(15, 20.5, 0.5)]
    masks = np.stack([mask for _, mask in placed])
    return [shape for shape, _ in placed], np.fft.rfft2(masks), masks.sum(axis=(1, 2))
