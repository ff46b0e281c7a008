"""Effects: what single changes did to single pictures, before anything is averaged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 1000


@dataclass(frozen=True)
class Probe:
    """One change that a localisation tries.

    Attributes:
        layers: the changed layers.
        part: what of them: a part of the schedule such as "0-25 %", a kind of token, or all ("").
    """

    layers: tuple[int, ...]
    part: str = ""

    def __str__(self) -> str:
        layers = str(self.layers[0]) if len(self.layers) == 1 else f"{self.layers[0]}-{self.layers[-1]}"
        return f"{layers} {self.part}".strip()


@dataclass(frozen=True, eq=False)
class Effects:
    """The effects of probes on each prompt and seed.

    Attributes:
        probes: what was changed.
        prompts: the prompts with the concept.
        seeds: the seeds of the initial noise.
        values: float64 [probe, prompt, seed], how far each probe moved the metric towards the goal.
        full: float64 [prompt, seed], how far the goal itself is.
        relative: whether scores are shares of the full change rather than in the metric's own units.
    """

    probes: tuple[Probe, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Float[Tensor, "probe prompt seed"]
    full: Float[Tensor, "prompt seed"]
    relative: bool = False

    def means(self) -> Float[np.ndarray, "probe"]:
        """Each probe's score; 0 where the metric says nothing."""
        return np.nan_to_num(self._scores(self.values.numpy(), self.full.numpy()))

    def full_mean(self) -> float:
        """The mean full change; 0 where the metric says nothing."""
        return float(np.nan_to_num(_mean(self.full.numpy()[None])[0]))

    def intervals(self, confidence: float = 0.95, seed: int = 0) -> Float[np.ndarray, "probe 2"]:
        """Bootstrap intervals of the probes' scores; prompts and seeds are drawn anew, each on its own (Owen, 2007)."""
        return self._intervals(self.values.numpy(), confidence, seed)

    def full_interval(self) -> tuple[float, float]:
        """A bootstrap interval of the mean full change, as in `intervals`."""
        low, high = replace(self, relative=False)._intervals(self.full.numpy()[None], 0.95, 0)[0]
        return float(low), float(high)

    def of_layers(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """Each layer's score: the mean over the probes that hold it."""
        return np.nan_to_num(self._scores(self._by_layer(layers), self.full.numpy()))

    def of_layers_by_prompt(self, layers: Sequence[int]) -> Float[np.ndarray, "prompt layer"]:
        """Each layer's mean effect on each prompt, in the metric's own units; 0 where the metric says nothing."""
        return np.nan_to_num([_mean(each[:, None]) for each in self._by_layer(layers)]).T

    def layer_intervals(self, layers: Sequence[int], confidence: float = 0.95, seed: int = 0) -> Float[np.ndarray, "layer 2"]:
        """Bootstrap intervals of the layers' scores, as in `intervals`."""
        return self._intervals(self._by_layer(layers), confidence, seed)

    def shares(self, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
        """Each layer's mean effect as a share of the full change."""
        return np.nan_to_num(_ratio(self._by_layer(layers), self.full.numpy()))

    def to_header(self) -> dict[str, Any]:
        """All but the tensors, as plain values."""
        probes = [asdict(probe) for probe in self.probes]
        return {"probes": probes, "prompts": list(self.prompts), "seeds": list(self.seeds), "relative": self.relative}

    @classmethod
    def from_header(cls, header: Mapping[str, Any], values: Tensor, full: Tensor) -> Self:
        """The inverse of `to_header`."""
        probes = tuple(Probe(tuple(each["layers"]), each["part"]) for each in header["probes"])
        return cls(probes, tuple(header["prompts"]), tuple(header["seeds"]), values, full, header["relative"])

    def _by_layer(self, layers: Sequence[int]) -> np.ndarray:
        """[layer, prompt, seed], the mean over the probes that hold each layer."""
        values = self.values.numpy()
        return np.stack([values[[layer in probe.layers for probe in self.probes]].mean(axis=0) for layer in layers])

    def _scores(self, values: np.ndarray, full: np.ndarray) -> np.ndarray:
        return _ratio(values, full) if self.relative else _mean(values)

    def _intervals(self, values: np.ndarray, confidence: float, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        prompts, seeds = self.full.shape
        drawn = []
        for _ in range(RESAMPLES):
            rows, columns = rng.integers(prompts, size=prompts), rng.integers(seeds, size=seeds)
            drawn.append(self._scores(values[:, rows][:, :, columns], self.full.numpy()[rows][:, columns]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a probe of which the metric says nothing
            return np.nan_to_num(np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).T)


def _mean(values: Float[np.ndarray, "probe prompt seed"]) -> Float[np.ndarray, "probe"]:
    """The mean of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    return _divided(np.where(known, values, 0.0).sum(axis=(1, 2)), known.sum(axis=(1, 2)))


def _ratio(values: Float[np.ndarray, "probe prompt seed"], full: Float[np.ndarray, "prompt seed"]) -> Float[np.ndarray, "probe"]:
    """The mean effect over the mean full change, of the pictures where both are known; NaN where there is no change at all."""
    known = ~np.isnan(values) & ~np.isnan(full)
    return _divided(np.where(known, values, 0.0).sum(axis=(1, 2)), np.where(known, full, 0.0).sum(axis=(1, 2)))


def _divided(sums: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(sums, by, out=np.full(len(sums), np.nan), where=by != 0)
