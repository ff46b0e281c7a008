"""What one call of the denoiser is given: the prompts' conditions, and which rows of the batch carry them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from neuroscope.core.errors import InvalidInput, counted


@dataclass(frozen=True, eq=False)
class Conditions:
    """Prompts as a pipeline's own text encoders give them to its denoiser.

    Attributes:
        context: [prompt, token, channel], what cross-attention reads.
        pooled: [prompt, summary], one summary a prompt, where the encoders give one beside the tokens (SDXL).
        mask: [prompt, token], 1 at the tokens that cross-attention sees and 0 at the others, where the denoiser is given one (PixArt).
        generated: [prompt, state, channel], what a language model wrote of the prompt, where some layers read that instead of the
            context (AudioLDM2); its states are of no single word.
    """

    context: Float[Tensor, "prompt token channel"] = field(repr=False)
    pooled: Float[Tensor, "prompt summary"] | None = field(default=None, repr=False)
    mask: Shaped[Tensor, "prompt token"] | None = field(default=None, repr=False)
    generated: Float[Tensor, "prompt state other"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, prompt: int) -> Conditions:
        """One prompt's conditions."""
        chosen = slice(prompt, prompt + 1 or None)
        return self._each(lambda part: part[chosen])

    @classmethod
    def of(cls, parts: Sequence[Conditions]) -> Self:
        """All prompts of several conditions, in order."""
        found = {name: [tensor for each in parts if (tensor := getattr(each, name)) is not None] for name in _PARTS}
        return cls(**{name: torch.cat(tensors) for name, tensors in found.items() if tensors or name == "context"})

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Conditions:
        """The conditions on another device or in another number format; a mask keeps its own."""
        return self._each(lambda part: part.to(device, dtype if part.is_floating_point() else part.dtype))

    def alone(self) -> Conditions:
        """The conditions in memory of their own: a part of a larger batch otherwise keeps all of it, and is sent with all of it."""
        return self._each(torch.clone)

    @property
    def of_tokens(self) -> Shaped[Tensor, "prompt token"]:
        """The mask; ones where there is none."""
        return self.context.new_ones(self.context.shape[:2]) if self.mask is None else self.mask

    def seen(self, chosen: Bool[Tensor, "prompt token"]) -> Bool[Tensor, "prompt token"]:
        """The chosen tokens that attention sees; of a prompt of which it sees none of these, the last one that it sees."""
        seen = self.of_tokens.bool()
        positions = torch.arange(seen.shape[1], device=seen.device)
        last = positions == torch.where(seen, positions, -1).amax(dim=1, keepdim=True)
        kept = chosen.to(seen.device) & seen
        return torch.where(kept.any(dim=1, keepdim=True), kept, last)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        others = {name: change(part) for name in _PARTS[1:] if (part := getattr(self, name)) is not None}
        return Conditions(change(self.context), **others)


_PARTS = tuple(each.name for each in fields(Conditions))


Rows = Literal["all", "conditional"]
Part = Literal["conditional", "unconditional", "other"]


@dataclass(frozen=True)
class BatchLayout:
    """How the rows of one call of the denoiser lie: equal parts, one after the other, each with one row an image.

    Attributes:
        parts: what each part is given: what the pipeline encoded of the prompt ("conditional"; under perturbed-attention guidance
            there are two such parts), what it encoded of the negative prompt ("unconditional"), another prompt whose text the images
            take ("other"; these rows make no image), or something else (None).
    """

    parts: tuple[Part | None, ...]

    def images(self, batch: int) -> int:
        """The number of images in a batch of so many rows.

        Raises:
            InvalidInput: the rows are not equal parts.
        """
        images, rest = divmod(batch, len(self.parts))
        if rest:
            raise InvalidInput(
                f"{counted(batch, 'row', ('is', 'are'))} not {counted(len(self.parts), 'equal part')}, so it is not known which of "
                "them carry the prompt"
            )
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
                f"the denoiser was called with {counted(len(self.parts), 'part')} of rows, and part {self.parts.index(None) + 1} reads "
                "neither what the pipeline encoded of the prompt nor of the negative prompt, so it is not known which rows carry the "
                'prompt; run a pipeline that passes on what its encode_prompt returns, or use rows="all"'
            )
        numbers = [number for number, part in enumerate(self.parts) if part == "conditional"]
        if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise InvalidInput(
                f'the rows that carry the prompt do not lie side by side ({", ".join(map(str, self.parts))}); use rows="all"'
            )
        return numbers


#: A batch in which every row carries the prompt.
PLAIN = BatchLayout(("conditional",))
