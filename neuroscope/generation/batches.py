"""Sweeps: lists of images to make, each with changes of its own, in batches that fit the memory.

What `evaluate` and `localize` share. A row is independent of all others: its noise comes from its own seed, its text is
encoded once, and a batch may mix rows with different changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import psutil
import torch
from PIL.Image import Image

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.intervention import Intervention
from neuroscope.generation.image_inputs import spread_images
from neuroscope.metrics.shares import Space
from neuroscope.pipeline.discovery import row_bytes
from neuroscope.pipeline.families import has_latents
from neuroscope.pipeline.graph import HookGraph

LARGEST_BATCH = 64
#: The options of a pipeline's call that sweeps set, beside what it takes in place of prompts.
_OWN_ARGUMENTS = ("prompt", "prompt_2", "negative_prompt_2", "generator", "num_images_per_prompt", "output_type", "return_dict")


@dataclass(frozen=True)
class Row:
    """One image to make: which text it shows, the seed of its noise, and what is changed.

    Attributes:
        text: a prompt, or the name of an entry of the sweep's `contexts`.
        seed: of the initial noise.
        changes: the interventions on this row alone.
        reads: the text of the run, from the same noise, from which the changes take another prompt's text where blocks rewrite it (see
            `HookGraph.apply_each`); "" to take it from the row's own latents.
    """

    text: str
    seed: int
    changes: tuple[Intervention, ...] = ()
    reads: str = ""

    @property
    def donor(self) -> Row | None:
        """The row from which its changes take another prompt's text, if that is one of a batch."""
        return Row(self.reads, self.seed) if self.reads else None


def missing_donors(rows: Sequence[Row]) -> list[Row]:
    """The rows from which some of these take another prompt's text and which are not among them."""
    return list(dict.fromkeys(donor for row in rows if (donor := row.donor) is not None and donor not in rows))


def how_many_fit(rows: Sequence[Row], size: int) -> int:
    """How many of the first rows fit a batch of a size with the donors that they need; at least 1."""
    count = min(len(rows), size)
    while count > 1 and count + len(missing_donors(rows[:count])) > size:
        count -= 1
    return max(1, count)


BatchContext = Callable[[Sequence[Row]], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class SweepInputs:
    """All that a sweep's rows share beside the model, as data that another process can use.

    Attributes:
        conditions: of each text, by its name.
        negative: the conditions of the negative prompt.
        generation: options of the pipeline's call.
        batch_size: images at a time.
        space: "image" or "latent".
    """

    conditions: Mapping[str, Conditions]
    negative: Conditions
    generation: Mapping[str, Any]
    batch_size: int
    space: Space


class Sweep:
    """Makes rows with one model and one set of the pipeline's options.

    Args:
        graph: the model.
        texts: all prompts that rows will name; each is encoded once.
        generation: options for the pipeline, such as `num_inference_steps`.
        batch_size: images at a time; by default as many as fit half of the free memory, at most 64.
        space: "image" gives images, "latent" final latents, which saves the autoencoder's work.
        contexts: further texts by name, each of one prompt, such as corrupted ones.

    Attributes:
        batch_size: images at a time, by which rows are grouped.
        fits: how many of them fit the memory, as far as is known: fewer once a group was halved.

    Raises:
        InvalidInput: an option of the pipeline that sweeps set themselves, or a LoRA's scale that the text encoders would not follow.
    """

    def __init__(
        self,
        graph: HookGraph,
        texts: Sequence[str],
        generation: Mapping[str, Any],
        *,
        batch_size: int | None = None,
        space: Space = "image",
        contexts: Mapping[str, Conditions] | None = None,
    ) -> None:
        if taken := sorted(set(generation) & {*_OWN_ARGUMENTS, *graph.family.prompt_arguments}):
            raise InvalidInput(f"{taken[0]} is set for each image here; give only options that all images share")
        if batch_size is not None and batch_size < 1:
            raise InvalidInput(f"batch_size={batch_size} is no number of images; give 1 or more, or None to fit the memory")
        _refuse_scaled_text(graph, generation)
        self.graph = graph
        self.space = space
        self._generation = {name: value for name, value in generation.items() if name not in ("negative_prompt", "clip_skip")}
        distinct = list(dict.fromkeys(texts))
        encoded = graph.text.conditions(distinct, **graph.text.options(generation)) if distinct else ()
        self._conditions = {text: encoded[number].alone() for number, text in enumerate(distinct)} | dict(contexts or {})
        self._negative = graph.text.negative(generation.get("negative_prompt"))
        self.batch_size = batch_size or fitted_batch_size(graph, generation)
        self.fits = self.batch_size

    @classmethod
    def of(cls, graph: HookGraph, inputs: SweepInputs) -> Self:
        """The sweep of inputs that were encoded and checked elsewhere, on a replica of the model."""
        sweep = cls(graph, [], {}, batch_size=inputs.batch_size, space=inputs.space, contexts=inputs.conditions)
        sweep._generation, sweep._negative = dict(inputs.generation), inputs.negative
        return sweep

    @property
    def inputs(self) -> SweepInputs:
        """What makes the same sweep in another process; see `of`."""
        conditions = {text: each.to("cpu") for text, each in self._conditions.items()}
        return SweepInputs(conditions, self._negative.to("cpu"), self._generation, self.batch_size, self.space)

    def run(
        self, rows: Sequence[Row], context: BatchContext | None = None, shared_rows: Sequence[Row] = ()
    ) -> Iterator[tuple[list[Row], list[Any]]]:
        """Makes the rows, a batch at a time, in order; a batch that does not fit the memory is halved and made again.

        Args:
            rows: what to make.
            context: the block in which a batch runs, given all its rows; by default each row's own changes are applied. A block that
                ends a run early makes nothing.
            shared_rows: rows that are made again in front of every batch, because others of the batch take something from them.

        Yields:
            For each batch its rows (without the shared ones) and their images or latents.
        """
        rows = list(rows)
        while rows:
            batch = rows[: how_many_fit(rows, self.fits - len(shared_rows))]
            before = [*shared_rows, *missing_donors(batch)]
            try:
                made = self._make([*before, *batch], context or self._apply)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
                self._halve(len(batch), len(before))
                continue
            yield batch, made[len(before) :]
            rows = rows[len(batch) :]

    def _halve(self, failed: int, shared: int) -> None:
        """Halves how many images fit until fewer rows than those that failed are made beside the shared ones."""
        while max(1, self.fits - shared) >= failed:
            self.fits = -(-self.fits // 2)
        warnings.warn(f"out of memory; going on with {counted(self.fits, 'image')} at a time", UserWarning, stacklevel=3)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def conditions(self, text: str) -> Conditions:
        """What the denoiser is told for a text."""
        return self._conditions[text]

    def images(self, made: Sequence[Any]) -> list[Image]:
        """What `run` gave, as images."""
        if self.space == "image":
            return list(made)
        return self._decoded(made)

    def _make(self, rows: Sequence[Row], context: BatchContext) -> list[Any]:
        device = self.graph.pipe._execution_device
        conditional = Conditions.of([self._conditions[row.text] for row in rows]).to(device)
        unconditional = Conditions.of([self._negative] * len(rows)).to(device)
        raw = "latent" if has_latents(self.graph.pipe) else "pt"
        decodes = self.space == "image" and self.graph.family.makes != "image"
        made: Sequence[Any] = ()
        with context(rows):
            made = self.graph.pipe(
                **self.graph.text.arguments(conditional, unconditional),
                generator=[torch.Generator().manual_seed(row.seed) for row in rows],
                output_type="pil" if self.space == "image" and not decodes else raw,
                **spread_images(self.graph.pipe, self._generation, len(rows)),
            )[0]
        return self._decoded(list(made)) if decodes and len(made) else list(made)

    def _decoded(self, made: Sequence[Any]) -> list[Image]:
        return self.graph.family.decode(self.graph.pipe, torch.stack(list(made)), self._generation)

    def _apply(self, rows: Sequence[Row]) -> AbstractContextManager[Any]:
        if not any(row.changes for row in rows):
            return nullcontext()
        donors = [None if row.donor is None else rows.index(row.donor) for row in rows]
        return self.graph.apply_each([row.changes for row in rows], donors=donors)


def _refuse_scaled_text(graph: HookGraph, generation: Mapping[str, Any]) -> None:
    """Raises InvalidInput for a call's own scale of LoRAs where a text encoder has one: prompts are encoded before the call."""
    scaled = "scale" in (generation.get("cross_attention_kwargs") or {})
    if scaled and any(hasattr(module, "lora_A") for encoder in graph.text.encoders for module in encoder.modules()):
        raise InvalidInput(
            "cross_attention_kwargs holds a scale for a LoRA of the text encoder, and prompts are encoded once, without it; set the scale "
            "with pipe.set_adapters(name, scale)"
        )


def fitted_batch_size(graph: HookGraph, generation: Mapping[str, Any]) -> int:
    """How many images at a time fit half of the free memory, by an upper bound of a row's; from 1 to 64."""
    device = torch.device(graph.pipe._execution_device)  # an offloaded denoiser rests elsewhere
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    row = bytes_an_image(graph, generation.get("height"), generation.get("width"), generation.get("num_frames"))
    return int(min(LARGEST_BATCH, max(1, free / 2 // (2 * row))))


def bytes_an_image(graph: HookGraph, height: int | None = None, width: int | None = None, frames: int | None = None) -> int:
    """An upper bound of the memory that one row takes for images (or videos) of a size in pixels, by default the model's."""
    return row_bytes(graph.family, graph.denoiser, graph.family.latent_size(graph.pipe, graph.denoiser, height, width, frames))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory does not hold what was asked."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
