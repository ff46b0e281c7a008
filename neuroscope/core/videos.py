"""Videos, which are images of themselves: contact sheets that keep their frames."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

_SHOWN = 6  # frames on a contact sheet, evenly spread from the first to the last
_COLUMNS = 3


class Video(Image.Image):
    """A video that a pipeline made, seen as a contact sheet of its frames, so that it can stand wherever an image does.

    The sheet shows up to six frames, evenly spread from the first to the last, in rows of three.

    Attributes:
        frames: all frames, RGB images of one size.
        rate: frames a second.
    """

    frames: tuple[Image.Image, ...]
    rate: float

    @classmethod
    def of(cls, frames: Sequence[Image.Image], rate: float) -> Self:
        """A video of its frames, at least one."""
        found = cls()
        found.__setstate__([_sheet(frames).__getstate__(), tuple(frames), rate])
        return found

    def __getstate__(self) -> list[Any]:
        """What copies and other processes are given."""
        return [super().__getstate__(), self.frames, self.rate]

    def __setstate__(self, state: list[Any]) -> None:
        """Takes what `__getstate__` gave."""
        shown, self.frames, self.rate = state
        super().__setstate__(shown)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.frames) / self.rate

    def gif(self) -> bytes:
        """The bytes of an animated GIF that repeats; of 256 colours a frame."""
        buffer = io.BytesIO()
        first, *others = self.frames
        first.save(buffer, "GIF", save_all=True, append_images=others, duration=round(1000 / self.rate), loop=0)
        return buffer.getvalue()


def frames_of(image: Image.Image) -> tuple[Image.Image, ...]:
    """A video's frames; of any other image, itself."""
    return image.frames if isinstance(image, Video) else (image,)


def levels_of(image: Image.Image) -> np.ndarray:
    """The levels of an image's pixels from 0 to 255, float64; of a video, those of all frames."""
    return np.stack([np.asarray(frame, dtype=np.float64) for frame in frames_of(image)])


def _sheet(frames: Sequence[Image.Image]) -> Image.Image:
    """A contact sheet of a video."""
    count = min(len(frames), _SHOWN)
    chosen = [frames[round(place)] for place in np.linspace(0, len(frames) - 1, count)]
    (width, height), columns = frames[0].size, min(count, _COLUMNS)
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    for number, frame in enumerate(chosen):
        sheet.paste(frame, (number % columns * width, number // columns * height))
    return sheet
