"""Sounds, which are images of themselves: spectrograms that keep their samples."""

from __future__ import annotations

import io
import wave
from typing import Any, Self

import numpy as np
from PIL import Image
from scipy.signal import resample_poly, stft

_SIZE = (256, 128)  # of a spectrogram, in pixels: time and frequency
_LONGEST, _FRAMES = 1024, 256
_QUIETEST = -80.0  # decibels of full scale, shown black


class Sound(Image.Image):
    """A sound that a pipeline made, seen as its spectrogram, so that it can stand wherever an image does.

    Time goes from left to right, frequency from 0 at the bottom to half of the sampling rate at the top. Black is -80 decibels of full
    scale or less, white is 0.

    Attributes:
        samples: float32 [channel, sample], from -1 to 1 where nothing is cut off.
        rate: samples a second.
    """

    samples: np.ndarray
    rate: int

    @classmethod
    def of(cls, samples: np.ndarray, rate: int) -> Self:
        """A sound of its samples, [channel, sample] or [sample]."""
        found = cls()
        waves = np.atleast_2d(np.asarray(samples, dtype=np.float32))
        found.__setstate__([_spectrogram(waves, rate).__getstate__(), waves, rate])
        return found

    def __getstate__(self) -> list[Any]:
        """What copies and other processes are given."""
        return [super().__getstate__(), self.samples, self.rate]

    def __setstate__(self, state: list[Any]) -> None:
        """Takes what `__getstate__` gave."""
        shown, self.samples, self.rate = state
        super().__setstate__(shown)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return float(self.samples.shape[1] / self.rate)

    def at(self, rate: int) -> np.ndarray:
        """The mean of its channels at another sampling rate, float32 [sample]."""
        mono: np.ndarray = self.samples.mean(axis=0)
        return mono if rate == self.rate else np.asarray(resample_poly(mono, rate, self.rate), dtype=np.float32)

    def wav(self) -> bytes:
        """The bytes of a WAV file: 16 bits a sample; what exceeds full scale is cut off."""
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(len(self.samples))
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(np.round(self.samples.T.clip(-1, 1) * 32767).astype("<i2").tobytes())
        return buffer.getvalue()


def _spectrogram(waves: np.ndarray, rate: int) -> Image.Image:
    """The mean power of the channels over time and frequency, of one size whatever the sound's length."""
    count = waves.shape[1]
    window = int(min(_LONGEST, 2 ** max(4, np.ceil(np.log2(max(count, 1) / _FRAMES)) + 4), max(count, 2)))
    hop = max(1, count // _FRAMES)
    padded = waves if count >= 2 else np.pad(waves, ((0, 0), (0, 2 - count)))
    _, _, found = stft(padded, rate, nperseg=window, noverlap=max(0, window - hop), scaling="spectrum")
    level = 10 * np.log10(np.square(2 * np.abs(found)).mean(axis=0).clip(1e-12))
    shades = np.round(255 * (1 - level.clip(_QUIETEST, 0) / _QUIETEST)).astype(np.uint8)
    return Image.fromarray(shades[::-1]).resize(_SIZE).convert("RGB")
