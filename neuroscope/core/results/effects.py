"""Effects: what single changes did to single images, before anything is averaged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.statistics import difference_interval, is_share, share_interval

RESAMPLES = 1000


@dataclass(frozen=True)
class Patch:
    """One change that a localisation tries.

    Attributes:
        layers: the changed layers, none for the pooled text path.
        part: what of them: a part of the schedule such as "0-25 %", a kind of token, or all ("").
    """

    layers: tuple[int, ...]
    part: str = ""

    def __str__(self) -> str:
        runs: list[list[int]] = []
        for layer in self.layers:
            runs = [*runs[:-1], [*runs[-1], layer]] if runs and layer == runs[-1][-1] + 1 else [*runs, [layer]]
        layers = "+".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
        return f"{layers} {self.part}".strip()


#: The change of the pooled text path, which belongs to no layer.
POOLED = Patch((), "pooled")
#: The change of what a net beside the denoiser, such as a ControlNet, reads of the prompt.
CONTROL = Patch((), "control net")
#: What carries the prompt beside the layers, and what it is called.
BESIDE = {POOLED: "the pooled text", CONTROL: "the control net"}


@dataclass(frozen=True)
class EffectsHeader:
    """What a file's header says of effects, as `Effects.to_header` gives it."""

    patches: tuple[Patch, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    relative: bool


@dataclass(frozen=True, eq=False)
class Effects:
    """The effects of patches on each prompt and seed.

    Attributes:
        patches: what was changed.
        prompts: the prompts with the concept.
        seeds: the seeds of the initial noise.
        values: float64 [patch, prompt, seed], how far each patch moved the metric towards the target.
        total: float64 [prompt, seed], how far the target itself is.
        relative: whether scores are shares of the total effect rather than in the metric's own units.

    Raises:
        InvalidInput: values of other sizes, or infinite ones; NaN stands for an image of which the metric says nothing.
    """

    patches: tuple[Patch, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Float[Tensor, "patch prompt seed"]
    total: Float[Tensor, "prompt seed"]
    relative: bool = False

    def __post_init__(self) -> None:
        sizes = (len(self.patches), len(self.prompts), len(self.seeds))
        if 0 in sizes[1:]:
            raise InvalidInput(
                f"effects on {counted(sizes[1], 'prompt')} and {counted(sizes[2], 'seed')} are none; give at least one of each"
            )
        for name, values, wanted in (("effects", self.values, sizes), ("total effects", self.total, sizes[1:])):
            if not isinstance(values, Tensor) or tuple(values.shape) != wanted:
                raise InvalidInput(f"the {name} have shape {tuple(getattr(values, 'shape', ()))}; give {wanted}")
            if torch.isinf(values).any():
                raise InvalidInput(f"the {name} hold infinity; give finite numbers, or NaN where nothing is known")

    def means(self) -> Float[np.ndarray, "patch"]:
        """Each patch's score; 0 where the metric says nothing."""
        return _score(self.values.numpy(), self._over())

    def total_mean(self) -> float:
        """The mean total effect; 0 where the metric says nothing."""
        return float(_score(self.total.numpy()[None], np.ones(self.total.shape))[0])

    def intervals(self, confidence: float = 0.95, seed: int = 0) -> Float[np.ndarray, "patch 2"]:
        """Intervals of the patches' scores.

        Where every effect is a number of images (1, 0 or -1, as a reader's answers give), they are exact, of so many prompts as
        there are, whatever the number of seeds; see `intervals.share_interval`. If no effect is negative, scores are shares of
        the prompts, otherwise differences of two shares. All others are bootstrap intervals: prompts and seeds are drawn anew,
        each on its own (Owen, 2007); effects that are all the same leave these without width.
        """
        return self._intervals(self.values.numpy(), self._over(), confidence, seed)

    def total_interval(self) -> tuple[float, float]:
        """An interval of the mean total effect, as in `intervals`."""
        low, high = self._intervals(self.total.numpy()[None], np.ones(self.total.shape), 0.95, 0)[0]
        return float(low), float(high)

    def is_moved(self) -> bool:
        """Whether the total effect moves the metric: the bootstrap interval of its mean lies above 0."""
        return bool(self._resampled(self.total.numpy()[None], np.ones(self.total.shape), 0.95, 0)[0, 0] > 0)

    def is_above_zero(self, patch: Patch) -> bool:
        """Whether a patch has an effect: the bootstrap interval of its score lies above 0."""
        return bool(self._resampled(self.values.numpy()[[self.patches.index(patch)]], self._over(), 0.95, 0)[0, 0] > 0)

    def of_layers(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """Each layer's score: the mean over the patches that hold it."""
        return _score(self._by_layer(layers), self._over())

    def of_layers_by_prompt(self, layers: Sequence[int]) -> Float[np.ndarray, "prompt layer"]:
        """Each layer's mean effect on each prompt, in the metric's own units; 0 where the metric says nothing."""
        by_prompt = self._by_layer(layers).transpose(1, 0, 2)[:, :, None]
        return np.stack([_score(each, np.ones((1, len(self.seeds)))) for each in by_prompt])

    def peak_interval(self, layers: Sequence[int]) -> tuple[float, float]:
        """A bootstrap interval of how much the strongest layer of each prompt exceeds the strongest opposite effect.

        Where effects are noise, they are as strong in either direction; in whatever layer a prompt has its own, this is above 0.
        """
        by_prompt = self.of_layers_by_prompt(layers)
        excess = (by_prompt.max(axis=1) + by_prompt.min(axis=1))[None, :, None]
        low, high = self._resampled(excess, np.ones(excess.shape[1:]), 0.95, 0)[0]
        return float(low), float(high)

    def layer_intervals(self, layers: Sequence[int], confidence: float = 0.95, seed: int = 0) -> Float[np.ndarray, "layer 2"]:
        """Intervals of the layers' scores, as in `intervals`."""
        return self._intervals(self._by_layer(layers), self._over(), confidence, seed)

    def shares(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """Each layer's mean effect as a share of the total effect."""
        return _score(self._by_layer(layers), self.total.numpy())

    def share_of(self, patch: Patch, confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
        """One patch's mean effect as a share of the total effect, and its interval as in `intervals`."""
        values, full = self.values.numpy()[[self.patches.index(patch)]], self.total.numpy()
        low, high = self._intervals(values, full, confidence, seed)[0]
        return float(_score(values, full)[0]), float(low), float(high)

    def to_header(self) -> dict[str, Any]:
        """All but the tensors, as plain values."""
        patches = [asdict(patch) for patch in self.patches]
        return {"patches": patches, "prompts": list(self.prompts), "seeds": list(self.seeds), "relative": self.relative}

    @classmethod
    def from_header(cls, header: EffectsHeader, values: Tensor, full: Tensor) -> Self:
        """The inverse of `to_header`."""
        return cls(header.patches, header.prompts, header.seeds, values, full, header.relative)

    def _by_layer(self, layers: Sequence[int]) -> np.ndarray:
        """[layer, prompt, seed], the mean over the patches that hold each layer."""
        values = self.values.numpy()
        return np.stack([values[[layer in patch.layers for patch in self.patches]].mean(axis=0) for layer in layers])

    def _over(self) -> np.ndarray:
        """[prompt, seed], what scores are shares of: the total effect, or 1 for scores in the metric's own units."""
        return self.total.numpy() if self.relative else np.ones(self.total.shape)

    def _intervals(self, values: np.ndarray, over: np.ndarray, confidence: float, seed: int) -> np.ndarray:
        if not self._is_count or not (is_share(over) and (values == 0)[:, over == 0].all()):
            return self._resampled(values, over, confidence, seed)
        signed = bool((self.values < 0).any() or (self.total < 0).any())
        return np.array([_exact(each, over, signed, confidence) for each in values]).reshape(-1, 2)

    @property
    def _is_count(self) -> bool:
        """Whether every known effect is an image more, an image less, or none."""
        every = np.abs(np.concatenate([self.values.numpy().ravel(), self.total.numpy().ravel()]))
        return is_share(every)

    def _resampled(self, values: np.ndarray, over: np.ndarray, confidence: float, seed: int) -> np.ndarray:
        """To draw anew is to weight each prompt and each seed by how often it is drawn."""
        rng = np.random.default_rng(seed)
        prompts, seeds = (rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) for count in over.shape)
        drawn = _ratios(values, over, prompts[:, :, None] * seeds[:, None, :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a patch of which the metric says nothing
            result: np.ndarray = np.nan_to_num(np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).T)
            return result


def _exact(
    effects: Float[np.ndarray, "prompt seed"], over: Float[np.ndarray, "prompt seed"], signed: bool, confidence: float
) -> tuple[float, float]:
    """The interval of a mean effect over the images that `over` counts; (0, 0) where none is known."""
    known = ~np.isnan(effects) & (over == 1)
    images = known.sum(axis=1)
    of = int((images > 0).sum())
    if not of:
        return 0.0, 0.0
    up, down = (
        round(float((np.where(known, (sign * effects).clip(min=0), 0.0).sum(axis=1) / images.clip(min=1)).sum()), 9) for sign in (1, -1)
    )
    return difference_interval(up, down, of, confidence) if signed else share_interval(up, of, confidence)


def _score(values: Float[np.ndarray, "patch prompt seed"], over: Float[np.ndarray, "prompt seed"]) -> Float[np.ndarray, "patch"]:
    result: Float[np.ndarray, "patch"] = np.nan_to_num(_ratios(values, over, np.ones((1, *over.shape)))[0])
    return result


def _ratios(
    values: Float[np.ndarray, "patch prompt seed"], over: Float[np.ndarray, "prompt seed"], weights: np.ndarray
) -> Float[np.ndarray, "draw patch"]:
    """For weights [draw, prompt, seed] the ratios of means, of the images where both are known; NaN where that is 0 / 0."""
    known = ~np.isnan(values) & ~np.isnan(over)
    sums, wholes = (np.tensordot(weights, np.where(known, each, 0.0), axes=([1, 2], [1, 2])) for each in (values, over))
    result: Float[np.ndarray, "draw patch"] = np.divide(sums, wholes, out=np.full(sums.shape, np.nan), where=wholes != 0)
    return result
