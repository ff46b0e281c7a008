"""Other prompts' text beside a batch's images, in models whose blocks rewrite the text.

What a layer reads of another prompt depends there on the step and on an image. It is therefore taken, at each call of the denoiser, from a
row that is given the other prompt: a row of the batch that the caller names, or one that is added for this call, with the image's own
latents, and taken off again. What the first block reads depends on prompt and step alone, and is computed without a row.

What the image reads differs from what the text reads then, so that an attention in which it does runs twice: first as it is, which gives
the text to the next block, then with the changes, which gives the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from neuroscope.core.conditions import BatchLayout, Conditions
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.intervention import Call, Taking, lies_within
from neuroscope.pipeline.families import Family, JointAttention

#: For each image of a batch, the image whose row gives the text; None where a row is added for it.
Donors = Sequence[int | None]


@dataclass(frozen=True)
class Taker:
    """A change that takes another prompt's text.

    Attributes:
        taking: what it takes.
        images: of the batch, those that take it; None for all.
        attentions: by path, the attentions in which they do.
        donors: see `Donors`; None where rows are added for all.
        known: from a call's arguments by name, with one row each, and as many prompts, what the attention reads of these, where that
            depends on no image; None where rows have to give it.
        alone: what the attentions read depends on prompts alone, so that their sites know it.
    """

    taking: Taking
    images: tuple[int, ...] | None
    attentions: Mapping[str, JointAttention]
    donors: Donors | None
    known: Callable[[Mapping[str, Any], Conditions], Tensor] | None = None
    alone: bool = False


class _Given(NamedTuple):
    """A call of the denoiser before rows are added.

    Attributes:
        arguments: by name.
        layout: of its own rows, if that is known.
        rows: how many there are, those added by others among them.
        images: how many images it has.
        begins: whether a run begins with it.
    """

    arguments: dict[str, Any]
    layout: BatchLayout | None
    rows: int
    images: int
    begins: bool


class TextStreams:
    """What is known of the text of a model whose blocks rewrite it, while blocks of hooks are open on it.

    Args:
        family: of its denoiser.

    Attributes:
        others: how many parts of added rows the current call of the denoiser has.
        layout: the layout of the rows that were not added; None where that is not known.
        tokens: how many tokens the text has.
        again: the rows of the second run of an attention that goes on; none in its first run.
    """

    def __init__(self, family: Family) -> None:
        self.others = 0
        self.layout: BatchLayout | None = None
        self.tokens = 0
        self.again: Tensor = torch.empty(0)
        self._family = family
        self._added = 0
        self._running = False
        self._donors: dict[int, Tensor] = {}
        self._known: dict[int, Callable[[], Tensor]] = {}
        self._twice: dict[str, tuple[int, ...]] = {}
        self._text: Tensor = torch.empty(0)

    def begin(self, tokens: int) -> None:
        """Notes the tokens of the text, at the first hook of a call of the denoiser."""
        if not self._running:
            self._running, self.tokens, self.others, self._added = True, tokens, 0, 0
            self._donors, self._twice, self._known = {}, {}, {}

    def end(self) -> None:
        """Notes the end of a call of the denoiser, on every way out of it; other hooks may still ask what was added."""
        self._running, self._text = False, torch.empty(0)

    def add(
        self, takers: Sequence[Taker], given: Mapping[str, Any], layout: BatchLayout | None, place: tuple[int | None, int | None]
    ) -> dict[str, Any]:
        """The arguments of a call of the denoiser with a row for each text that some images take and no row of the batch has.

        Args:
            takers: the changes that take texts.
            given: all arguments by name.
            layout: of the rows, those added by others among them.
            place: the step, and of how many.

        Raises:
            InvalidInput: a row that is to give its text began from other noise or reads another prompt, or prompts that cannot be shared
                among the images.
        """
        rows = len(self._family.latents(given))
        images = self._note_layout(rows, layout)
        call = _Given(dict(given), self.layout, rows, images, place[0] == 0)
        added: list[dict[int, Conditions]] = []
        for taker in takers:
            if lies_within(taker.taking.steps, *place) and (taker.taking.rows == "all" or self._carrying(call)):
                self._take(taker, call, added)
        self.others += len(added)
        self._added += len(added) * images
        return self._with_rows(call, added)

    def _note_layout(self, rows: int, layout: BatchLayout | None) -> int:
        """Notes the layout of the rows that were not added, of one that may have others; how many images there are."""
        own = None if layout is None else BatchLayout(tuple(part for part in layout.parts if part != "other"))
        self.layout = None if own is None or own.parts == (None,) else own
        return rows // (1 if layout is None else len(layout.parts))

    def let_read(self, attentions: Iterable[str], rows: int, layout: BatchLayout | None) -> None:
        """Lets these attentions run twice at this call of the denoiser, for all of its images.

        Args:
            attentions: their paths.
            rows: how many the call has, those added by others among them.
            layout: of these rows.
        """
        self._run_twice(attentions, range(self._note_layout(rows, layout)))

    def _run_twice(self, attentions: Iterable[str], images: Iterable[int]) -> None:
        for path in attentions:
            self._twice[path] = tuple(sorted({*self._twice.get(path, ()), *images}))

    def _take(self, taker: Taker, call: _Given, added: list[dict[int, Conditions]]) -> None:
        """Notes where the images of a change take their text from, with another row for each where that is to be added."""
        images = range(call.images) if taker.images is None else taker.images
        prompts = _one_each(taker.taking.conditions, len(images))
        if taker.taking.definition == "edge":
            self._run_twice(taker.attentions, images)
        if taker.alone:
            return self._expect_as_long(call, images, prompts)
        if taker.known is not None and taker.donors is None:
            carrying = list(self._carrying(call)) or list(range(call.images))
            given = self._of_rows(call, [carrying[image] for image in images])
            self._known[id(taker.taking.conditions)] = cache(partial(taker.known, given, Conditions.of(prompts)))
            return None
        rows = []
        for image, prompt in zip(images, prompts, strict=True):
            donor = None if taker.donors is None else taker.donors[image]
            if donor is not None:
                rows.append(self._checked(call, image, donor, prompt))
                continue
            part = next((number for number, each in enumerate(added) if image not in each), len(added))
            if part == len(added):
                added.append({})
            added[part][image] = prompt
            rows.append(call.rows + part * call.images + image)
        self._donors[id(taker.taking.conditions)] = torch.tensor(rows, device=self._family.latents(call.arguments).device)
        return None

    def _expect_as_long(self, call: _Given, images: Iterable[int], prompts: Sequence[Conditions]) -> None:
        """Raises InvalidInput for a prompt of more or fewer tokens than the run's: the image's place in the sequence follows from them."""
        mask = call.arguments.get(self._family.arguments["mask"])
        carrying = list(self._carrying(call)) or list(range(call.images))
        for image, prompt in zip(images, prompts, strict=True):
            own, other = self.tokens if mask is None else int(mask[carrying[image]].sum()), int(prompt.of_tokens.sum())
            if own != other:
                raise InvalidInput(
                    f"the swap's prompt has {counted(other, 'token')} and this run's {own}; the image stands behind its prompt in this "
                    "model, so that another length moves it: give prompts of as many tokens"
                )

    def _of_rows(self, call: _Given, rows: Sequence[int]) -> dict[str, Any]:
        """The arguments of a call, those with one entry a row reduced to these rows."""

        def choose(name: str, value: Any) -> Any:
            whole = name in self._family.shared or not isinstance(value, Tensor) or not value.ndim or len(value) != call.rows
            return value if whole else value[list(rows)]

        return {name: choose(name, value) for name, value in call.arguments.items()}

    def _carrying(self, call: _Given) -> Sequence[int]:
        """For each image the row that carries its prompt; none in a call that carries negative prompts alone."""
        return range(call.images) if call.layout is None else call.layout.carrying(call.images * len(call.layout.parts))

    def _checked(self, call: _Given, image: int, donor: int, prompt: Conditions) -> int:
        """The row of the image that gives its text to another, which began from the same noise."""
        row, context = self._carrying(call)[donor], call.arguments[self._family.arguments["context"]]
        what = f"image {donor} of the batch is to give its text to image {image}"
        if not torch.equal(context[row], prompt.context[0].to(context)):
            raise InvalidInput(f"{what}, and reads another prompt than the change's; give donors in the order of the batch")
        latents = self._family.latents(call.arguments)
        if call.begins and not torch.equal(latents[row], latents[self._carrying(call)[image]]):
            raise InvalidInput(f"{what}, and begins from other noise; give both images generators of one seed")
        return row

    def _with_rows(self, call: _Given, added: Sequence[Mapping[int, Conditions]]) -> dict[str, Any]:
        """The call's arguments with these parts of rows, each a copy of an image's own row that reads another prompt."""
        if not added:
            return call.arguments
        copied = list(self._carrying(call)) or list(range(call.images))
        names = {self._family.arguments[kind]: kind for kind in ("context", "pooled", "mask") if kind in self._family.arguments}

        def extend(name: str, value: Any) -> Any:
            if name in self._family.shared or not isinstance(value, Tensor) or not value.ndim or len(value) != call.rows:
                return value
            parts = [value[copied].clone() for _ in added]
            for part, prompts in zip(parts, added, strict=True) if name in names else ():
                for image, prompt in prompts.items():
                    own = (prompt.of_tokens if names[name] == "mask" else getattr(prompt, names[name]))[0].to(part)
                    part[image, : len(own)] = own  # a mask may go on with the image's tokens
            return torch.cat([value, *parts])

        return {name: extend(name, value) for name, value in call.arguments.items()}

    def drop(self, output: Any) -> Any:
        """The denoiser's output without the rows that were added."""
        rows, added = len(tree_leaves(output)[0]), self._added
        return tree_map(lambda each: each[: rows - added] if isinstance(each, Tensor) and each.ndim and len(each) == rows else each, output)

    def read(self, conditions: Conditions) -> Tensor:
        """What the attention that goes on reads of other prompts, [image, token, channel], one for each image that takes them."""
        known = self._known.get(id(conditions))
        return self._text[self._donors[id(conditions)]] if known is None else known()

    @property
    def runs_again(self) -> bool:
        """Whether an attention is in its second run."""
        return len(self.again) > 0

    def text_of(self, joint: JointAttention, tensor: Tensor) -> Tensor:
        """The tokens of the text in what an attention is given or gives of text."""
        return tensor[:, : self.tokens] if joint.leads else tensor

    def with_text(self, joint: JointAttention, tensor: Tensor, text: Tensor) -> Tensor:
        """The same with other tokens of the text; those of the image, where the two are one sequence, stay."""
        return torch.cat([text, tensor[:, self.tokens :]], dim=1) if joint.leads else text

    def runs_twice(self, attention: str) -> bool:
        """Whether an attention runs a second time at this call of the denoiser."""
        return attention in self._twice

    def enter(self, joint: JointAttention, kwargs: Mapping[str, Any]) -> None:
        """Notes the text that an attention is given in its first run."""
        self._text = self.text_of(joint, kwargs[joint.argument])

    def changed(self, joint: JointAttention, kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The arguments of an attention with another text; rows that were added keep theirs."""
        given = kwargs[joint.argument]
        return kwargs | {joint.argument: self.with_text(joint, given, self.of_own(self.text_of(joint, given), change))}

    def of_own(self, tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """A tensor with one entry a row after a change of the rows that were not added."""
        own = len(tensor) - self._added
        changed = change(tensor[:own])
        return torch.cat([changed, tensor[own:]]) if self._added else changed

    def run_again(self, attention: str, joint: JointAttention, module: nn.Module, kwargs: dict[str, Any], output: Any) -> Any:
        """An attention's output after its second run, in which images read the texts that they take."""
        layout = self.layout or BatchLayout((None,))
        own = len(kwargs["hidden_states"]) - self._added
        self.again = torch.tensor(layout.of_images(self._twice[attention], own), device=kwargs["hidden_states"].device)
        try:
            chosen = {name: kwargs[name][self.again] for name in joint.per_row if isinstance(kwargs.get(name), Tensor)}
            given = module(**(kwargs | chosen))
            if not joint.leads:
                return (output[0].index_copy(0, self.again, given[0]), *output[1:])
            return self.with_text(joint, output.index_copy(0, self.again, given), output[:, : self.tokens])
        finally:
            self.again = torch.empty(0)

    def whole(self, text: Tensor, first: Tensor) -> Tensor:
        """All rows that were not added, of those of a second run and of what the first run had."""
        own = len(first) - self._added
        return text if len(self.again) == own else first[:own].index_copy(0, self.again, text)

    def chosen(self, text: Tensor) -> Tensor:
        """The rows of a second run."""
        return text if len(self.again) == len(text) else text[self.again]

    def seen(self, call: Call) -> Call:
        """A call as it is in the run that goes on."""
        return replace(call, reading=False) if not self.runs_again else replace(call, reading=True, layout=self.layout)


def _one_each(conditions: Conditions, images: int) -> list[Conditions]:
    """For each image the prompt that it takes; several images of one prompt lie side by side."""
    if images % len(conditions):
        raise InvalidInput(
            f"the swap holds contexts of {counted(len(conditions), 'prompt')}, which {counted(images, 'image')} cannot be shared among; "
            "give one or as many as prompts"
        )
    return [conditions[image * len(conditions) // images] for image in range(images)]
