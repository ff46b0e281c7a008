"""Making what is planted heard: each carrying layer alone moves the images by about the same distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neuroscope.testbed.construction.modules import TextModules, module_of
from neuroscope.testbed.construction.pipelines import denoiser_of
from neuroscope.testbed.construction.plants import Planted
from neuroscope.testbed.construction.proof import Prover

#: How far a carrying layer is to move the final latents, relative to their size; random deep layers move them a millionth.
_REACH = 0.08
_NEAR = 1.15
_HEARD = 2.0  # where nothing is to be balanced
_ROUNDS = 9
_FASTEST = 30.0  # the largest change of loudness in one round


@torch.no_grad()
def tune(pipe: Any, record: Planted, text: TextModules, carried: Mapping[str, Tensor]) -> None:
    """Scales, in the values of each carrying layer (or the pooled text), the part that reads the concept, and nothing else.

    Args:
        pipe: planted.
        record: what is planted.
        text: where.
        carried: by the path of a carrying projection, the directions [direction, channel] that tell its prompts apart.
    """
    weights = {path: denoiser_of(pipe).get_submodule(path).weight.data for path in carried}
    plain = {path: weight.clone().double() for path, weight in weights.items()}
    concept = {path: plain[path] @ basis.T @ basis for path, basis in carried.items()}
    loudness = dict.fromkeys(carried, 1.0)
    for path, kept in record.neurons.items():
        rows = [row for row in range(len(concept[module_of(path)])) if row not in kept]
        concept[module_of(path)][rows] = 0.0
    prover = Prover(pipe, record, text)
    for _ in range(_ROUNDS):
        missing = _missing(prover, record, list(carried))
        near = _NEAR if record.shown_from else _HEARD
        if all(1 / near < factor < near for factor in missing.values()):
            return
        for path, factor in missing.items():
            loudness[path] *= min(max(factor, 1 / _FASTEST), _FASTEST) ** 0.9
            weights[path].copy_(plain[path] + (loudness[path] - 1) * concept[path])
        prover = prover.renewed(carried)


def _missing(prover: Prover, record: Planted, paths: list[str]) -> dict[str, float]:
    """By path: how many times louder it should be. Layers that carry together get a share of about one half each."""
    if len(record.layers) < 2 or record.plant == "prompt" or prover.full < _REACH / _FASTEST:
        return {path: _REACH / prover.reach(path) for path in paths}
    shares = prover.alone().mean(dim=1).clamp(0.02, 1.0).tolist()
    return {path: _REACH / prover.full * (0.5 / share) ** 0.5 for path, share in zip(paths, shares, strict=True)}
