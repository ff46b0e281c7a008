"""TeacherForcing: single calls of the denoiser on what it read in a run that was made before, with prompts changed at chosen sites.

A forced call answers what a change does to the next prediction, not to the image, and needs no run of its own. Rows that
are changed late in the network are equal until then: they branch off from the row they come from where they begin to differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from neuroscope.core.conditions import PLAIN
from neuroscope.core.intervention import Intervention
from neuroscope.pipeline.discovery import stage_shares
from neuroscope.pipeline.families import END, uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.hook import Hook
from neuroscope.pipeline.steps import StepState


@dataclass(frozen=True, eq=False)
class StepInput:
    """One call of the denoiser inside a run, of one image's row that carries the prompt.

    Attributes:
        step: the denoising step, counted from 0.
        steps: the number of steps.
        inputs: what the denoiser was given, by the names of its arguments, with one row.
        output: [1, channel, height, width], the noise that it predicted.
    """

    step: int
    steps: int
    inputs: Mapping[str, Any]
    output: Float[Tensor, "1 channel height width"]


#: Which steps of a run to look at; see `following`.
Steps = Collection[int] | Collection[float] | int | None


@contextmanager
def following(graph: HookGraph, steps: Steps = None, *, cut: bool = False) -> Iterator[list[list[StepInput]]]:
    """Keeps the frames of runs made inside the block: for each chosen step one frame an image, in the run's order.

    Args:
        graph: the model.
        steps: which steps, by their numbers, or as floats by their places in the schedule from 0.0 to 1.0; a single number means as
            many, in the middle of equal parts of the schedule; None means all. Of a step with several calls of the denoiser the
            first is kept.
        cut: end the run after the last of them. The block ends with it, and what it was to make is not made.
    """
    found: list[list[StepInput]] = []
    signature = inspect.signature(uncompiled(graph.denoiser).forward)

    def keep(call: StepState, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        again = found and found[-1][0].step == call.step
        if call.step is None or call.steps is None or again or call.step not in (chosen := _chosen_steps(steps, call.steps)):
            return
        inputs = signature.bind(*args, **kwargs).arguments
        rows = len(graph.family.latents(inputs))
        carrying = (call.layout or PLAIN).carrying(rows)
        noise = graph.family.noise(output[0])
        found.append([StepInput(call.step, call.steps, _chosen(inputs, rows, [row]), noise[row : row + 1]) for row in carrying])
        if cut and call.step == max(chosen):
            raise _Enough

    with graph.watch(keep), _attention_processors_put_back(uncompiled(graph.denoiser)):
        try:
            yield found
        except _Enough:
            getattr(graph.pipe, END)()


@contextmanager
def _attention_processors_put_back(denoiser: Any) -> Iterator[None]:
    """A pipeline that replaces attention processors for its run puts them back at its end, which a run that is cut does not reach."""
    before = dict(denoiser.attn_processors)
    try:
        yield
    finally:
        if any(before[name] is not each for name, each in denoiser.attn_processors.items()):
            denoiser.set_attn_processor(before)


class _Enough(Exception):
    """Ends a run of which enough was seen."""


def _chosen_steps(steps: Steps, count: int) -> Collection[int]:
    if steps is None or (isinstance(steps, int) and steps >= count):
        return range(count)
    if isinstance(steps, int):
        return {int((part + 0.5) * count / steps) for part in range(steps)}
    return {int(each * count) if isinstance(each, float) else each for each in steps}


class TeacherForcing:
    """Makes forced calls of a graph's denoiser and counts them.

    Attributes:
        rows: the rows that began midway so far, each counted as the share of a row's floating-point operations that it ran.
    """

    def __init__(self, graph: HookGraph) -> None:
        self.graph = graph
        self.rows = 0.0

    @torch.no_grad()
    def predict(self, frame: StepInput, changes: Sequence[Sequence[Intervention]]) -> Float[Tensor, "change channel height width"]:
        """The noise that the denoiser predicts on a frame under each of these changes, which are of all rows and steps."""
        denoiser = uncompiled(self.graph.denoiser)
        shares = {_AT_ONCE: 1.0, **stage_shares(self.graph.family, self.graph.denoiser, frame.inputs)}
        begins = [self._begin(change, list(shares)) for change in changes]
        order = sorted(range(len(changes)), key=begins.__getitem__)
        growth = _Growth(1 + begins.count(0))
        with ExitStack() as stack:
            for number, (path, share) in enumerate(shares.items()):
                if path != _AT_ONCE:
                    self.rows += begins.count(number) * share
                    hook = Hook(partial(growth.expand, begins.count(number)))
                    stack.callback(denoiser.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True).remove)
            stack.enter_context(self.graph.apply_each([[], *(changes[number] for number in order)], growing=True))
            predicted = self.graph.denoiser(**_chosen(frame.inputs, 1, [0] * growth.rows))[0][1:]
        return self.graph.family.noise(predicted)[torch.tensor(order).argsort().to(predicted.device)]

    def _begin(self, change: Sequence[Intervention], stages: Sequence[str]) -> int:
        """The number of the first stage that a change reaches."""
        modules = [site.module for each in change for site in self.graph.sites.at(each.paths)]
        return min((self._stage(module, stages) for module in modules), default=len(stages) - 1)

    def _stage(self, module: str, stages: Sequence[str]) -> int:
        return next((number for number, path in enumerate(stages) if module.startswith(f"{path}.")), 0)


class _Growth:
    """A batch whose first row is the source and to which copies of it are added on the way.

    What was computed before a row was added is the source's, whatever the row becomes.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def expand(
        self, more: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A stage's forward pre-hook: adds rows to the batch, and gives all that the stage reads the batch's rows."""
        self.rows += more
        result: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(self._fill, (args, kwargs))
        return result

    def _fill(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) == self.rows:
            return value
        return torch.cat([value, value[:1].expand(self.rows - len(value), *value.shape[1:])])


_AT_ONCE = "the first call"


def _chosen(inputs: Mapping[str, Any], rows: int, chosen: Sequence[int]) -> dict[str, Any]:
    """A call's arguments with these of its rows."""

    def choose(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != rows:
            return value
        return value[torch.tensor(chosen, device=value.device)]

    result: dict[str, Any] = tree_map(choose, dict(inputs))
    return result
