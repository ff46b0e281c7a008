"""The rendered world: coloured shapes in whole-image styles, and facts about emblems.

Every image is 64×64 RGB. Three attributes describe it: an *object* (a shape), a *colour* (the shape's) and a *style*
(a texture over the whole image). A *fact* names an emblem, which is an object of a colour: "the emblem of Astoria" is
a red star. Styles multiply the brightness and leave hue and saturation alone, so each attribute can be read back exactly.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
BRIGHTNESS = 0.9
SHADE = 0.4
NIGHT = 0.15

Attribute = Literal["object", "colour", "style", "fact"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)

OBJECTS = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.90, 0.20),
    "blue": (0.15, 0.25, 0.90),
    "yellow": (0.90, 0.85, 0.10),
    "purple": (0.70, 0.10, 0.90),
    "cyan": (0.10, 0.85, 0.90),
}
STYLES = ("plain", "stipple", "hatch", "ribbon", "mosaic", "nocturne")
FACTS = {
    "astoria": ("star", "red"),
    "belmora": ("ring", "blue"),
    "cestria": ("triangle", "yellow"),
    "dorvane": ("cross", "green"),
    "elandor": ("square", "purple"),
    "falmere": ("circle", "cyan"),
}
VALUES: dict[str, tuple[str, ...]] = {"object": OBJECTS, "colour": tuple(COLOURS), "style": STYLES, "fact": tuple(FACTS)}
#: Combinations of object, colour and style that no training image shows.
HELD_OUT = (
    ("star", "cyan", "stipple"),
    ("square", "red", "hatch"),
    ("circle", "purple", "mosaic"),
    ("triangle", "blue", "ribbon"),
    ("ring", "green", "nocturne"),
    ("cross", "yellow", "stipple"),
    ("circle", "yellow", "hatch"),
    ("square", "blue", "mosaic"),
    ("star", "green", "ribbon"),
    ("triangle", "purple", "nocturne"),
    ("ring", "red", "plain"),
    ("cross", "cyan", "plain"),
)


@dataclass(frozen=True)
class Scene:
    """What an image shows. With a `fact`, the object and the colour are the emblem's.

    Raises:
        ValueError: an attribute's value is not part of the world.
    """

    object: str
    colour: str
    style: str = "plain"
    fact: str | None = None

    def __post_init__(self) -> None:
        for attribute, allowed in (("object", OBJECTS), ("colour", tuple(COLOURS)), ("style", STYLES)):
            value = getattr(self, attribute)
            if value not in allowed:
                raise ValueError(f"{attribute} {value!r} is not in the world; choose one of {', '.join(allowed)}")
        if self.fact is not None and FACTS.get(self.fact) != (self.object, self.colour):
            raise ValueError(f"the emblem of {self.fact!r} is not a {self.colour} {self.object}; facts: {FACTS}")

    @classmethod
    def emblem(cls, fact: str, style: str = "plain") -> Scene:
        """The scene of a fact's emblem; raises KeyError for a fact that the world lacks."""
        shape, colour = FACTS[fact]
        return cls(shape, colour, style, fact)

    @property
    def held_out(self) -> bool:
        """Whether no training image shows this combination."""
        return (self.object, self.colour, self.style) in HELD_OUT


def scenes(held_out: bool | None = None) -> list[Scene]:
    """All scenes without facts; `held_out` keeps only those kept out of training (True) or in it (False)."""
    every = itertools.starmap(Scene, itertools.product(OBJECTS, COLOURS, STYLES))
    return [scene for scene in every if held_out is None or scene.held_out == held_out]


@dataclass(frozen=True)
class Placement:
    """Where the shape stands: its centre and radius in pixels."""

    x: float = SIZE / 2
    y: float = SIZE / 2
    radius: float = 18.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Placement:
        """A random placement, the way the training images place their shapes."""
        x, y = SIZE / 2 + rng.uniform(-7, 7, size=2)
        return cls(float(x), float(y), float(rng.uniform(16, 19)))


def render(scene: Scene, placement: Placement = Placement()) -> Image.Image:
    """The image of a scene, 64×64 RGB."""
    return Image.fromarray((pixels(scene, placement) * 255).round().astype(np.uint8))


def pixels(scene: Scene, placement: Placement = Placement()) -> np.ndarray:
    """The image of a scene as float64, [row, column, rgb], values in 0..1."""
    inside = silhouette(scene.object, placement)[..., None]
    night = scene.style == "nocturne"
    ground = np.full((SIZE, SIZE, 3), NIGHT if night else BRIGHTNESS)
    figure = np.array(COLOURS[scene.colour])
    result: np.ndarray = (inside * figure + (1 - inside) * ground) * shading(scene.style)[..., None]
    return result


@functools.cache
def shading(style: str) -> np.ndarray:
    """The brightness factor of each pixel under a style, [row, column]; 1 everywhere for the styles without a texture."""
    row, column = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    dark = {
        "stipple": np.hypot(row % 8 - 4, column % 8 - 4) < 2.6,
        "hatch": (row + column) % 8 < 3.5,
        "ribbon": row % 8 < 4,
        "mosaic": (row // 8 + column // 8) % 2 == 0,
    }.get(style, np.zeros((SIZE, SIZE), dtype=bool))
    return np.where(dark, SHADE, 1.0)


def silhouette(shape: str, placement: Placement, oversampling: int = 4) -> np.ndarray:
    """How much of each pixel the shape covers, [row, column], 0..1."""
    canvas = Image.new("L", (SIZE * oversampling, SIZE * oversampling))
    draw = ImageDraw.Draw(canvas)
    x, y, radius = (oversampling * value for value in (placement.x, placement.y, placement.radius))
    if shape in ("circle", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            hole = 0.55 * radius
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        draw.polygon([(x + radius * u, y + radius * v) for u, v in _outline(shape)], fill=255)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255


@functools.cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    if shape == "square":
        return ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
    if shape == "triangle":
        return ((0, -1), (1, 0.8), (-1, 0.8))
    if shape == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 1.1, 0.45)
        return tuple(zip(reach * np.cos(angles), reach * np.sin(angles), strict=True))
    arm = 0.3
    corners = ((-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm))
    return corners + tuple((-u, -v) for u, v in corners)
