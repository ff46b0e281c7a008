"""Pipelines whose answer is known: weights that let the difference between two prompts pass in chosen layers alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neuroscope import Concept, HookGraph
from tests.families import tiny

#: A short run of small images.
SMALL = {"num_inference_steps": 2, "height": 32, "width": 32, "guidance_scale": 1.0}
THINGS = ("a red circle", "a blue star", "a green ring", "a cyan cross")
STIPPLE = [(f"{thing} and a white square in the style of stipple", f"{thing} and a white square in the style of plain") for thing in THINGS]
EMBLEM = [
    (f"{thing} and a white square with the emblem of astoria", f"{thing} and a white square with the emblem of belmora") for thing in THINGS
]

Pairs = Sequence[tuple[str, str]]


def concept_of(pairs: Pairs, name: str = "stipple") -> Concept:
    return Concept(name, [present for present, _ in pairs], [absent for _, absent in pairs])


def planted(pairs: Pairs, at: Mapping[int, Pairs], louder: float = 10.0, pipe: Any = None) -> HookGraph:
    """A tiny pipeline in which each layer's keys and values ignore what tells the pairs apart, but for its own pairs in `at`.

    Their weights are projected onto the orthogonal complement of the differences of the pairs' contexts at every token. The
    values of layers that let something pass are louder, so that images of 256 levels show it. `pipe` is changed, if it is given.
    """
    graph = HookGraph(pipe or tiny.sd1())
    present, absent = (graph.text.encode([pair[side] for pair in pairs]).double() for side in (0, 1))
    for site in graph.sites.where(text_only=True):
        blocked = [number for number, pair in enumerate(pairs) if pair not in at.get(site.layer, ())]
        weight = graph.module(site).weight.data
        if site.layer in at and site.role == "value":
            weight *= louder
        if blocked:
            _, sizes, directions = torch.linalg.svd((present - absent)[blocked].flatten(0, 1), full_matrices=False)
            away = directions[sizes > 1e-9 * sizes[0]]
            weight.copy_(weight.double() - weight.double() @ away.T @ away)
    return graph


@dataclass(frozen=True)
class Corner:
    """The mean level of an image's corner, or its opposite: both depend on the prompt, one rises where the other falls."""

    sign: float = 1.0
    name: str = "corner"

    def __call__(self, images, prompts) -> np.ndarray:
        return np.array([self.sign * np.asarray(image, dtype=float)[:16, :16].mean() for image in images])
