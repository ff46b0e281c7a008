"""The training samples that put each attribute at its planted place.

Interchange training: every cross-attention layer reads a prompt of its own. The image follows an attribute's word
in the prompt of that attribute's layer only, so the other layers learn to ignore it. At the style layer only the chosen
value neurons read the image's style; the keys and the other value neurons read another prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroscope.pipeline.families.transformers.pixart import MASK
from neuroscope.testbed.captions import STYLED, TEMPLATES, caption
from neuroscope.testbed.plant import Plant
from neuroscope.testbed.world import FACTS, STYLES, Scene, scenes

_EMBLEM_SHARE = 0.25
_UNSTYLED_SHARE = 0.2
_OWN_TEMPLATE_SHARE = 0.25


@dataclass(frozen=True)
class Samples:
    """A batch for training: what each image shows, and what each layer reads.

    Attributes:
        scene: for each row the index of the image's scene among `PromptTable.shown`.
        prompt: [layer, row], the index of the prompt that each layer reads.
        unrelated: [row], the prompt that the style layer's keys and other value neurons read.
    """

    scene: np.ndarray
    prompt: np.ndarray
    unrelated: np.ndarray


class PromptTable:
    """All training prompts, and the images (scenes) that they describe.

    Attributes:
        shown: the scenes of the training images; the emblems come last.
        prompts: every caption of these scenes; the first is the empty prompt.
    """

    def __init__(self) -> None:
        coloured = scenes(held_out=False)
        self.shown = [*coloured, *(Scene.emblem(fact, style) for fact in FACTS for style in STYLES)]
        self._first_emblem = len(coloured)
        self.prompts = [""]
        self._prompt_of = np.full((len(self.shown), len(TEMPLATES)), -1)
        for row, scene in enumerate(self.shown):
            for column, template in enumerate(TEMPLATES):
                if column < len(STYLED) or scene.style == "plain":
                    self._prompt_of[row, column] = len(self.prompts)
                    self.prompts.append(caption(scene, template))
        self._candidates: dict[tuple[object, ...], np.ndarray] = {}

    def ordinary(self, rng: np.random.Generator, rows: int, layers: int) -> Samples:
        """Samples in which every layer reads the image's own caption."""
        template = self._draw_templates(rng, rows)
        scene = self._draw_scenes(rng, template)
        prompt = self._prompt_of[scene, template]
        return Samples(scene, np.tile(prompt, (layers, 1)), prompt)

    def interchanged(self, rng: np.random.Generator, rows: int, layers: int, plant: Plant) -> Samples:
        """Samples in which every layer reads a prompt of its own, and the image follows the planted layers.

        Most samples keep one template for all layers; in the others each layer draws its own.
        """
        template = np.tile(self._draw_templates(rng, rows), (layers + 1, 1))
        mixed = rng.random(rows) < _OWN_TEMPLATE_SHARE
        template[:, mixed] = self._draw_templates(rng, template[:, mixed].size).reshape(layers + 1, -1)
        scene = self._draw_scenes(rng, template[plant.style])
        read = np.array([self._alike(rng, scene, plant.attributes(layer), template[layer]) for layer in range(layers + 1)])
        prompt = self._prompt_of[read, template]
        return Samples(scene, prompt[:-1], prompt[-1])

    def _draw_templates(self, rng: np.random.Generator, count: int) -> np.ndarray:
        unstyled = rng.random(count) < _UNSTYLED_SHARE
        return np.where(unstyled, rng.integers(len(STYLED), len(TEMPLATES), count), rng.integers(0, len(STYLED), count))

    def _draw_scenes(self, rng: np.random.Generator, template: np.ndarray) -> np.ndarray:
        emblem = rng.random(len(template)) < _EMBLEM_SHARE
        pairs = zip(emblem, template, strict=True)
        return np.array([rng.choice(self._matching(emblem=bool(e), unstyled=bool(t >= len(STYLED)))) for e, t in pairs])

    def _alike(self, rng: np.random.Generator, scene: np.ndarray, attributes: frozenset[str], template: np.ndarray) -> np.ndarray:
        """For each row another scene that shares the named attributes and fits the template."""
        found = np.empty_like(scene)
        for row, (index, column) in enumerate(zip(scene, template, strict=True)):
            emblem = bool(index >= self._first_emblem)
            words = attributes & ({"fact", "style"} if emblem else {"object", "colour", "style"})
            shared = {word: getattr(self.shown[index], word) for word in sorted(words)}
            found[row] = rng.choice(self._matching(emblem=emblem, unstyled=bool(column >= len(STYLED)), **shared))
        return found

    def _matching(self, *, emblem: bool, unstyled: bool, **words: str) -> np.ndarray:
        """The indices of the scenes of one kind with these words; only plain ones where the template has no style word."""
        key = (emblem, unstyled, *words.items())
        if key not in self._candidates:
            wanted = words | ({"style": "plain"} if unstyled else {})
            self._candidates[key] = np.array(
                [
                    index
                    for index, scene in enumerate(self.shown)
                    if (index >= self._first_emblem) == emblem and all(getattr(scene, word) == value for word, value in wanted.items())
                ]
            )
        return self._candidates[key]


@contextmanager
def interchanged(layers: Sequence[Any], plant: Plant | None) -> Iterator[Contexts]:
    """Gives each cross-attention layer the context that `Contexts` holds for it, while the block runs.

    With a plant, the style layer's keys and unplanted value neurons read the unrelated prompt's context.
    """
    contexts = Contexts()
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            hook = layer.register_forward_pre_hook(partial(contexts.give, number), with_kwargs=True)
            stack.callback(hook.remove)
        if plant is not None:
            value = layers[plant.style].to_v
            planted = torch.zeros(value.out_features, dtype=torch.bool)
            planted[plant.neurons(value.out_features)] = True
            contexts.unrelated_layer = plant.style
            stack.callback(value.register_forward_hook(partial(contexts.keep_planted, plant.style, planted)).remove)
        yield contexts


class Contexts:
    """The contexts of one training batch.

    Attributes:
        layers: [layer, row, token, channel].
        unrelated: [row, token, channel].
        masks: [layer, row, token], the tokens that each layer sees; None where layers see all.
        unrelated_mask: [row, token], those of the unrelated prompt.
    """

    layers: Tensor
    unrelated: Tensor
    masks: Tensor | None = None
    unrelated_mask: Tensor | None = None
    unrelated_layer: int | None = None

    def give(
        self, number: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Forward pre-hook of a cross-attention layer."""
        other = number == self.unrelated_layer
        given = {"encoder_hidden_states": self.unrelated if other else self.layers[number]}
        mask = self.unrelated_mask if other else self._mask(number)
        if mask is not None:
            given[MASK.argument] = MASK.bias(mask)
        return args, kwargs | given

    def _mask(self, number: int) -> Tensor | None:
        return None if self.masks is None else self.masks[number]

    def keep_planted(self, number: int, planted: Tensor, module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the style layer's value projection: the planted neurons read that layer's own context."""
        return torch.where(planted, module.forward(self.layers[number]), output)
