"""What the tests know of a pipeline class: how to build and call it, and which rows of its denoiser's calls carry what."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.pipelines import parts

#: The prompts of a run, its negative prompt, and what an image shows that a pipeline changes.
PROMPTS = ("a red circle in the style of plain", "a green ring drawn in a dotted manner")
NEGATIVE = "a blue star"
SOURCE = "a grey square"

#: By whether a run is guided and how many prompts it has: one string for each call of the denoiser, over and over again, and one
#: letter for each row: "a" and "b" carry the first and the second prompt, "n" the negative prompt, "s" the source prompt, "e" the
#: empty prompt, "-" something else.
Layout = dict[tuple[bool, int], tuple[str, ...]]


def layout(guided: str, unguided: str = "a") -> Layout:
    """The layout of calls that hold one part after the other, each with a row for every prompt; parts of "a" carry the prompts."""
    both = {True: guided.split(), False: unguided.split()}
    return {
        (on, prompts): tuple("".join("ab"[:prompts] if part == "a" else part * prompts for part in call) for call in calls)
        for on, calls in both.items()
        for prompts in (1, 2)
    }


def _call(pipe: Any, **options: Any) -> Any:
    return pipe(**options)


@dataclass(frozen=True)
class Example:
    """One pipeline class, how it is called, and which rows of its denoiser's calls carry what.

    Attributes:
        kind: the class's name.
        parts: makes the pipeline.
        rows: see `Layout`; a run that it does not list is one that the pipeline does not make.
        variant: what tells examples of one class apart.
        refusal: words of the message with which `HookGraph` refuses it; empty: it is right.
        why: the reason of a refusal that is not of the class, as the docs say it.
        arguments: what a call needs besides prompts: an image for all rows is given once.
        listed: which of the arguments the pipeline itself takes once for each prompt.
        guidance: the values of `guidance_scale` with guidance and without.
        negative: whether a call is given a negative prompt.
        call: calls the pipeline; by default as a function.
    """

    kind: str
    parts: Callable[[], Any]
    rows: Layout
    variant: str = ""
    refusal: str = ""
    why: str = ""
    arguments: Callable[[], dict[str, Any]] = dict
    listed: tuple[str, ...] = ()
    guidance: tuple[float, float] = (5.0, 1.0)
    negative: bool = True
    call: Callable[..., Any] = field(default=_call)

    @property
    def name(self) -> str:
        """The class's name and the variant."""
        return f"{self.kind} ({self.variant})" if self.variant else self.kind

    def build(self) -> Any:
        """The pipeline, from seed 0."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes and settings that diffusers has deprecated
            return parts.drawn(self.parts)

    def options(self, prompts: int, guided: bool, listed: bool = True) -> dict[str, Any]:
        """What a call of the pipeline is given, without prompts and generators.

        Args:
            prompts: how many.
            guided: whether the run is guided.
            listed: images are given as the pipeline itself takes them, rather than once for all rows.
        """
        given = self.arguments()
        given |= {name: repeated(given[name], prompts) for name in self.listed if listed}
        return given | {"guidance_scale": self.guidance[not guided]}

    def run(self, pipe: Any, prompts: int, guided: bool, **options: Any) -> Any:
        """Calls the pipeline for the first prompts; each image has noise of its own seed."""
        noise = [torch.Generator().manual_seed(seed) for seed in range(prompts)]
        given = self.options(prompts, guided) | {"prompt": list(PROMPTS[:prompts]), "generator": noise}
        given |= {"negative_prompt": [NEGATIVE] * prompts} if self.negative else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.call(pipe, **(given | options))

    def calls(self, prompts: int, guided: bool, count: int) -> list[str]:
        """The rows of the first calls of a run."""
        cycle = self.rows[guided, prompts]
        return [cycle[number % len(cycle)] for number in range(count)]


def repeated(image: Any, rows: int) -> Any:
    """An image for each of several rows; of several images, one for each net, each of them."""
    if isinstance(image, list):
        return [repeated(each, rows) for each in image]
    return image.expand(rows, *image.shape[1:]).clone() if isinstance(image, Tensor) else [image] * rows


def conditional(rows: str) -> list[int]:
    """Which rows carry a prompt of the run."""
    return [number for number, letter in enumerate(rows) if letter in "ab"]
