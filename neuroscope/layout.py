"""Which rows of a denoiser's batch carry the prompt: read off the contexts that they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from neuroscope._errors import InvalidInput

Rows = Literal["all", "conditional"]
Part = Literal["conditional", "unconditional"]


@dataclass(frozen=True)
class BatchLayout:
    """How the rows of one call of the denoiser lie: equal parts, one after the other, each with one row an image.

    Attributes:
        parts: what each part is given: what the pipeline encoded of the prompt ("conditional"; under perturbed-attention guidance
            there are two such parts), what it encoded of the negative prompt ("unconditional"), or something else (None).
    """

    parts: tuple[Part | None, ...]

    def images(self, batch: int) -> int:
        """The number of images in a batch of so many rows.

        Raises:
            InvalidInput: the rows are not equal parts.
        """
        images, rest = divmod(batch, len(self.parts))
        if rest:
            raise InvalidInput(f"{batch} rows are not {len(self.parts)} equal parts, so it is not known which of them carry the prompt")
        return images

    def rows(self, rows: Rows, batch: int) -> slice:
        """The batch rows meant: all, or only those that carry the prompt, which may be none.

        Raises:
            InvalidInput: it is not known which rows carry the prompt, or they do not lie side by side.
        """
        if rows == "all":
            return slice(0, batch)
        images, numbers = self.images(batch), self._conditional()
        return slice(numbers[0] * images, (numbers[-1] + 1) * images) if numbers else slice(0, 0)

    def carrying(self, batch: int) -> range:
        """For each image of the batch the first row that carries its prompt; empty where none does.

        Raises:
            InvalidInput: as `rows`.
        """
        images, numbers = self.images(batch), self._conditional()
        return range(numbers[0] * images, (numbers[0] + 1) * images) if numbers else range(0)

    def of_images(self, images: Sequence[int], batch: int) -> tuple[int, ...]:
        """The rows of some images, in all parts."""
        count = self.images(batch)
        return tuple(part * count + image for part in range(len(self.parts)) for image in images)

    def _conditional(self) -> list[int]:
        if None in self.parts:
            raise InvalidInput(
                f"the denoiser was called with {len(self.parts)} parts of rows, and part {self.parts.index(None) + 1} reads neither what "
                "the pipeline encoded of the prompt nor of the negative prompt, so it is not known which rows carry the prompt; run a "
                'pipeline that passes on what its encode_prompt returns, or use rows="all"'
            )
        numbers = [number for number, part in enumerate(self.parts) if part == "conditional"]
        if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise InvalidInput(
                f'the rows that carry the prompt do not lie side by side ({", ".join(map(str, self.parts))}); use rows="all"'
            )
        return numbers


#: A batch in which every row carries the prompt.
PLAIN = BatchLayout(("conditional",))


def observe_layout(
    context: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    expected: Sequence[Part],
) -> BatchLayout:
    """The layout of a batch, by what its rows are given.

    Args:
        context: [row, token, channel], what the denoiser is given.
        conditional: [image, token, channel], what the pipeline encoded of the prompts.
        unconditional: what it encoded of the negative prompts, if it did.
        expected: the order that the pipeline has; it decides where prompt and negative prompt encode alike.
    """
    images = len(conditional)
    if not images or len(context) % images:
        return BatchLayout((None,) * max(1, len(expected)))
    blocks = context.split(images)
    found = [tuple(_parts(block, conditional, unconditional)) for block in blocks]
    if len(expected) == len(blocks) and all(part in each for part, each in zip(expected, found, strict=True)):
        return BatchLayout(tuple(expected))
    return BatchLayout(tuple(each[0] if len(each) == 1 else None for each in found))


def _parts(block: Tensor, conditional: Tensor, unconditional: Tensor | None) -> list[Part]:
    given: dict[Part, Tensor | None] = {"conditional": conditional, "unconditional": unconditional}
    return [part for part, encoded in given.items() if encoded is not None and _same(block, encoded)]


def _same(block: Tensor, encoded: Tensor) -> bool:
    return block.shape == encoded.shape and torch.equal(block, encoded.to(block))
