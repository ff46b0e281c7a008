"""Listening to a pipeline's runs: what it encodes of its prompts, and how many steps its scheduler has made.

Several pipelines may share one denoiser, and some keep their guidance in a local variable. Every pipeline's call begins
with its own `encode_prompt` and ends with `maybe_free_model_hooks`, and steps with its scheduler; inside a block these are
listened to, on the one pipeline object, and put back on every way out.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from neuroscope.core.conditions import BatchLayout, Conditions, Part
from neuroscope.core.errors import InvalidInput
from neuroscope.pipeline.families import END, Family, begin_of, uncompiled
from neuroscope.pipeline.hooking.hook import take_off_hooks
from neuroscope.pipeline.hooking.schedule import Schedule
from neuroscope.pipeline.hooking.text_streams import TextStreams


class Run:
    """One run of a pipeline, from its beginning until its end.

    Attributes:
        conditional: what it encoded of its prompts.
        unconditional: what it encoded of its negative prompts; None where it encoded none.
        iterations: how often its scheduler has stepped.
    """

    def __init__(self, pipe: Any, family: Family, conditional: Conditions, unconditional: Conditions | None) -> None:
        self.conditional, self.unconditional = conditional, unconditional
        self.iterations = 0
        self._pipe, self._family = pipe, family
        self._schedule: Schedule | None = None
        self._known = False
        self._seen: list[tuple[Tensor, BatchLayout]] = []

    def layout(self, context: Tensor, frames: int = 1) -> BatchLayout:
        """Which rows of a context [row, token, channel] that the denoiser is given carry the prompt; compared where it is another.

        So many rows side by side are of one image; the layout counts them as one.

        The calls of one step have contexts of their own, which are the same in every step.
        """
        found = next((layout for seen, layout in self._seen if seen is context), None)
        if found is None:
            self._seen = self._seen if len(self._seen) < len(self._family.calls) else []
            found = self._observed(context, len(self._seen), frames)
            self._seen.append((context, found))
        return found

    def _observed(self, given: Tensor, call: int, frames: int) -> BatchLayout:
        """The layout of a context with which a step's first, second, ... call is made."""
        context = given[::frames]
        if frames > 1 and not torch.equal(context.repeat_interleave(frames, dim=0), given):
            return BatchLayout((None,))  # frames of one video that read several prompts
        negative = None if self.unconditional is None else self.unconditional.context
        parts = len(context) // max(1, len(self.conditional))
        in_turn = parts == 1 and self._family.calls[call : call + 1]
        expected = in_turn or self._family.expected_parts(self._pipe, parts, negative is not None)
        shown = context[:, : context.shape[1] - self._family.tokens_beside]
        denoiser = uncompiled(getattr(self._pipe, self._family.component))
        own = self._family.as_called(denoiser, self.conditional.context)
        return observe_layout(shown, own, None if negative is None else self._family.as_called(denoiser, negative), expected)

    @property
    def has_begun(self) -> bool:
        """Whether the denoiser was called."""
        return self._known

    def step(self, timestep: float) -> tuple[int | None, int | None]:
        """The number of the step that goes on, and of how many; None where the run has no schedule or has left it."""
        timestep = self._family.timestep(self._pipe, timestep)
        if not self._known:
            length = getattr(self._pipe, "num_timesteps", None)
            self._schedule, self._known = Schedule.of(self._pipe.scheduler, timestep, length, self.iterations), True
        step = None if self._schedule is None else self._schedule.step(self.iterations, timestep)
        return (None, None) if step is None or self._schedule is None else (step, self._schedule.count)


class GuidanceListener:
    """What is heard of a pipeline while blocks are open on it.

    Attributes:
        run: the run that goes on; None between runs.
        blocks: how many are open.
        streams: what is known of a text that the denoiser's blocks rewrite.
    """

    def __init__(self, pipe: Any, family: Family) -> None:
        self.run: Run | None = None
        self.blocks = 0
        self._pipe, self._family = pipe, family
        self._encoded: list[Any] = []
        self._replaced = _Replaced()
        self._scheduler = _Replaced()
        self.streams = TextStreams(family)

    def open(self) -> None:
        """Begins to listen, with the first block."""
        if not self.blocks:
            begin = begin_of(self._pipe)
            self._replaced.put(self._pipe, {begin: self._begins, END: self._ends})
        self.blocks += 1

    def close(self) -> bool:
        """Stops listening, with the last block; whether it was that."""
        self.blocks -= 1
        if not self.blocks:
            self._scheduler.take_back()
            self._replaced.take_back()
        return not self.blocks

    def _begins(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        own = method(*args, **options)
        calls = self._family.encodings
        if len(calls) > 1:
            return self._begins_in_parts(own, args, options)
        encoded = self._family.settle(self._pipe, own)
        self._run_of(encoded, args, options)
        return encoded

    def _begins_in_parts(self, own: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Keeps what each of several encoders gave; a run begins with the last."""
        first = all(options.get(name) == value for name, value in self._family.encodings[0].items())
        self._encoded = [own] if first else [*self._encoded, own]
        if len(self._encoded) == len(self._family.encodings):
            self._run_of(self._encoded, args, options)
        return own

    def _run_of(self, encoded: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        found = self._family.split(self._family.encoded, self._pipe, encoded, args, options)
        if self._family.encodes_apart and self.run is not None and not self.run.has_begun:
            self.run.unconditional = found[0]  # the second call of a run that has not begun
            return
        self.run = Run(self._pipe, self._family, *found)
        self._scheduler.take_back()
        self._scheduler.put(self._pipe.scheduler, {"step": self._steps})

    def _ends(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.run = None
        self._scheduler.take_back()
        return method(*args, **options)

    def _steps(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        made = method(*args, **options)
        if self.run is not None:
            self.run.iterations += 1
        return made


class _Replaced:
    """Methods of one object that are replaced for a while; copies of the object made meanwhile have their own methods."""

    def __init__(self) -> None:
        self._owner: Any = None
        self._former: dict[str, Any] = {}

    def put(self, owner: Any, methods: dict[str, Callable[..., Any]]) -> None:
        """Calls `methods[name](method, ...)` instead of the owner's own method."""
        self._owner = owner
        given = vars(owner)
        self._former = {name: given[name] for name in (*methods, "__deepcopy__") if name in given}
        for name, listener in methods.items():
            own = getattr(owner, name)
            vars(owner)[name] = functools.wraps(own)(functools.partial(listener, own))
        vars(owner)["__deepcopy__"] = functools.partial(_copy_without, owner, tuple(methods), self._former)

    def take_back(self) -> None:
        """Puts the owner's own methods back."""
        if self._owner is None:
            return
        names = vars(self._owner)["__deepcopy__"].args[1]
        for name in (*names, "__deepcopy__"):
            vars(self._owner).pop(name, None)
        vars(self._owner).update(self._former)
        self._owner, self._former = None, {}


def _copy_without(owner: Any, names: tuple[str, ...], former: dict[str, Any], memo: dict[int, Any]) -> Any:
    """A deep copy of an object whose methods are replaced: with its own ones."""
    kind: Any = type(owner)
    twin = kind.__new__(kind)
    memo[id(owner)] = twin
    state = {name: value for name, value in vars(owner).items() if name not in (*names, "__deepcopy__")} | former
    vars(twin).update({name: copy.deepcopy(value, memo) for name, value in state.items()})
    for part in vars(twin).values():
        if isinstance(part, nn.Module):
            take_off_hooks(part)
    return twin


_LISTENERS: WeakKeyDictionary[Any, GuidanceListener] = WeakKeyDictionary()
#: Of every denoiser with open blocks, the thread that opened them and their number.
_OWNERS: WeakKeyDictionary[nn.Module, tuple[int, int]] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextmanager
def listen_for_guidance(pipe: Any, family: Family, denoiser: nn.Module) -> Iterator[GuidanceListener]:
    """Listens to this pipeline's runs inside the block; blocks may end in any order.

    Raises:
        InvalidInput: another thread has a block open on this denoiser.
    """
    _enter(denoiser)
    try:
        listener = _LISTENERS.setdefault(pipe, GuidanceListener(pipe, family))
        listener.open()
        try:
            yield listener
        finally:
            if listener.close():
                _LISTENERS.pop(pipe, None)
    finally:
        _leave(denoiser)


def _enter(denoiser: nn.Module) -> None:
    with _LOCK:
        owner, blocks = _OWNERS.get(denoiser, (threading.get_ident(), 0))
        if owner != threading.get_ident():
            raise InvalidInput(
                "another thread has a block open on this model, and what both do would mix; open blocks one after the other, or give "
                "each thread a pipeline of its own, such as copy.deepcopy(pipe)"
            )
        _OWNERS[denoiser] = owner, blocks + 1


def _leave(denoiser: nn.Module) -> None:
    with _LOCK:
        owner, blocks = _OWNERS[denoiser]
        if blocks > 1:
            _OWNERS[denoiser] = owner, blocks - 1
        else:
            del _OWNERS[denoiser]


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
