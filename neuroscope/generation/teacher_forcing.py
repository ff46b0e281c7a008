"""Teacher forcing: single calls of the denoiser on the inputs of a recorded run, with chosen sites changed.

A forced call tells what a change does to the next prediction. It does not tell what it does to the image, and it needs no run of
its own. Changes of late layers share the early part of the network: their rows are added to the batch where they begin to differ.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from neuroscope.core.conditions import PLAIN, Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.core.intervention import Intervention
from neuroscope.pipeline.discovery import stage_shares
from neuroscope.pipeline.families import END, uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.hooking.hook import Hook
from neuroscope.pipeline.hooking.steps import StepState


@dataclass(frozen=True, eq=False)
class StepInput:
    """One call of the denoiser inside a run, for the conditional row of one image.

    Attributes:
        step: the denoising step, counted from 0.
        steps: the number of steps of the run.
        inputs: the arguments of the denoiser's forward by name, with one row each.
        output: the predicted noise.
    """

    step: int
    steps: int
    inputs: Mapping[str, Any]
    output: Float[Tensor, "1 channel *place"]


#: Which steps of a run to record; see `record_steps`.
Steps = Collection[int] | Collection[float] | int | None


@contextmanager
def record_steps(graph: HookGraph, steps: Steps = None, *, stop_after: bool = False) -> Iterator[list[list[StepInput]]]:
    """Records the denoiser's inputs and outputs in runs inside the block.

    Args:
        graph: the model.
        steps: which steps. Integers are step numbers; floats are places in the schedule from 0.0 to 1.0; a single integer n
            takes the middle step of each of n equal parts of the schedule; None takes all. Where a step calls the denoiser several
            times, the first call is recorded.
        stop_after: end the run after the last recorded step. The block ends there too, and no image is made.

    Yields:
        A list that fills as the runs go: for each recorded step, in order, one entry an image.
    """
    found: list[list[StepInput]] = []
    signature = inspect.signature(uncompiled(graph.denoiser).forward)

    def keep(call: StepState, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        again = found and found[-1][0].step == call.step
        if call.step is None or call.steps is None or again or call.step not in (chosen := _chosen_steps(steps, call.steps)):
            return
        inputs = graph.family.gathered(signature.bind(*args, **kwargs).arguments)
        rows = len(graph.family.latents(inputs))
        if not (carrying := (call.layout or PLAIN).carrying(rows)):
            return  # a call for the negative prompt alone
        noise = graph.family.noise(uncompiled(graph.denoiser), output[0])
        shared = graph.family.shared
        found.append([StepInput(call.step, call.steps, _chosen(inputs, rows, [row], shared), noise[row : row + 1]) for row in carrying])
        if stop_after and call.step == max(chosen):
            raise _StopRun

    with graph.watch(keep), _attention_processors_put_back(uncompiled(graph.denoiser)):
        try:
            yield found
        except _StopRun:
            getattr(graph.pipe, END)()
    if not found and graph.family.successors:
        raise InvalidInput(f"none of the recorded steps is one in which the {graph.family.component} runs; record more steps")


@contextmanager
def _attention_processors_put_back(denoiser: Any) -> Iterator[None]:
    """Puts back attention processors that a pipeline replaces for its run, as a run that is stopped does not reach its own clean-up."""
    before = {module: module.processor for module in denoiser.modules() if hasattr(module, "processor")}
    try:
        yield
    finally:
        for module, processor in before.items():
            if module.processor is not processor:
                module.set_processor(processor)


class _StopRun(Exception):
    """Ends a run after its last recorded step."""


def _chosen_steps(steps: Steps, count: int) -> Collection[int]:
    if steps is None or (isinstance(steps, int) and steps >= count):
        return range(count)
    if isinstance(steps, int):
        return {int((part + 0.5) * count / steps) for part in range(steps)}
    return {int(each * count) if isinstance(each, float) else each for each in steps}


class TeacherForcing:
    """Makes forced calls of a model's denoiser and counts what they cost.

    Args:
        graph: the model.
        batch_size: how many rows a call may have. The changes of one step share a call whatever their number.

    Attributes:
        nfe: the cost, in NFE, of the rows that began midway: each costs the share of a whole row's floating-point operations that it
            ran. Whole rows are counted by `metered`.
        progress: is told how many more steps of a screen are scored; by default nobody is.
    """

    def __init__(self, graph: HookGraph, batch_size: int = 1) -> None:
        self.graph = graph
        self.batch_size = batch_size
        self.nfe = 0.0
        self.progress: Callable[[int], object] = lambda _steps: None

    def predict(self, step: StepInput, changes: Sequence[Sequence[Intervention]]) -> Float[Tensor, "change channel *place"]:
        """The noise that the denoiser predicts from a recorded step's inputs under each of several changes.

        Args:
            step: the recorded step.
            changes: the interventions of each row. They must act on all rows and all steps.
        """
        (predicted,) = self.predict_each([step], [changes])
        return predicted

    def predict_each(
        self,
        steps: Sequence[StepInput],
        changes: Sequence[Sequence[Sequence[Intervention]]],
        progress: Callable[[int], object] = lambda _steps: None,
    ) -> list[Float[Tensor, "change channel *place"]]:
        """As `predict`, for several recorded steps, each with changes of its own. Steps of several images share calls.

        Steps share a call where nothing but the rows' own inputs differs between them, such as the same step of runs of several images.
        `progress` is told after each call how many steps it had.
        """
        found: dict[int, Tensor] = {}
        for numbers in self._calls(steps, [1 + len(each) for each in changes]):
            predicted = self._predict([steps[number] for number in numbers], [changes[number] for number in numbers])
            found.update(zip(numbers, predicted, strict=True))
            progress(len(numbers))
        return [found[number] for number in range(len(steps))]

    def _calls(self, steps: Sequence[StepInput], rows: Sequence[int]) -> list[list[int]]:
        """The numbers of the steps that share each call."""
        calls: list[list[int]] = []
        if self.graph.family.one_step_a_call and steps and stage_shares(self.graph.family, self.graph.denoiser, steps[0].inputs):
            return [[number] for number in range(len(steps))]
        for number, step in enumerate(steps):
            for call in calls:
                fits = sum(rows[each] for each in call) + rows[number] <= self.batch_size
                if fits and _may_share_a_call(steps[call[0]].inputs, step.inputs):
                    call.append(number)
                    break
            else:
                calls.append([number])
        return calls

    @torch.no_grad()
    def _predict(self, steps: Sequence[StepInput], changes: Sequence[Sequence[Sequence[Intervention]]]) -> list[Tensor]:
        """The predictions of one call."""
        denoiser = uncompiled(self.graph.denoiser)
        shares = {_FIRST_CALL: 1.0, **stage_shares(self.graph.family, self.graph.denoiser, steps[0].inputs)}
        owners = [image for image, each in enumerate(changes) for _ in each]
        every = list(itertools.chain(*changes))
        begins = [self._begin(change, list(shares)) for change in every]
        order = sorted(range(len(every)), key=begins.__getitem__)
        donors = self._donors(changes)
        first = [*range(len(steps)), *donors]  # the unchanged rows, and those that give their text
        growth = _Growth([*first, *(owners[number] for number in order)], len(first) + begins.count(0), self.graph.family.shared)
        inputs = self._told(joined([step.inputs for step in steps], growth.owners[: growth.rows]), len(steps), list(donors.values()))
        with ExitStack() as stack:
            for number, (path, share) in enumerate(shares.items()):
                if path != _FIRST_CALL:
                    self.nfe += begins.count(number) * share
                    hook = Hook(partial(growth.expand, begins.count(number)))
                    stack.callback(denoiser.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True).remove)
            unchanged: list[Sequence[Intervention]] = [[] for _ in first]
            places = {image: len(steps) + number for number, image in enumerate(donors)}
            given = [None for _ in first] + [places.get(owners[number]) for number in order]
            stack.enter_context(self.graph.apply_each([*unchanged, *(every[number] for number in order)], growing=True, donors=given))
            predicted = self.graph.denoiser(**self.graph.family.spread(inputs))[0][len(first) :]
        noise = self.graph.family.noise(denoiser, predicted)[torch.tensor(order).argsort().to(predicted.device)]
        return list(noise.split([len(each) for each in changes]))

    def _donors(self, changes: Sequence[Sequence[Sequence[Intervention]]]) -> dict[int, Conditions]:
        """For each image whose changes take another prompt's text where blocks rewrite it, that prompt.

        Raises:
            InvalidInput: the changes of an image take the text of several prompts.
        """
        found: dict[int, Conditions] = {}
        for image, rows in enumerate(changes):
            taken = [each.taking for row in rows for each in row if each.taking is not None]
            if not self.graph.family.joint or not taken:
                continue
            found[image] = taken[0].conditions
            if any(not torch.equal(each.conditions.context, taken[0].conditions.context) for each in taken):
                raise InvalidInput("the changes of one forced step take the text of several prompts; force them one prompt after the other")
        return found

    def _told(self, inputs: dict[str, Any], first: int, prompts: Sequence[Conditions]) -> dict[str, Any]:
        """The inputs of a call in which some rows, one after the other, are told other prompts."""
        names = self.graph.family.arguments
        for name, kind in ((names[kind], kind) for kind in ("context", "pooled") if kind in names) if prompts else ():
            told = inputs[name].clone()
            told[first : first + len(prompts)] = torch.cat([getattr(prompt, kind) for prompt in prompts]).to(told)
            inputs[name] = told
        return inputs

    def nfe_of(self, step: StepInput, changes: Sequence[Sequence[Intervention]]) -> float:
        """The NFE of `predict` with these arguments, the unchanged row included; nothing is computed."""
        shares = {_FIRST_CALL: 1.0, **stage_shares(self.graph.family, self.graph.denoiser, step.inputs)}
        stages, parts = list(shares), list(shares.values())
        return 1.0 + len(self._donors([changes])) + sum(parts[self._begin(change, stages)] for change in changes)

    def _begin(self, change: Sequence[Intervention], stages: Sequence[str]) -> int:
        """The number of the first stage that a change reaches."""
        modules = [site.module for each in change for site in self.graph.sites.at(each.paths)]
        return min((self._stage(module, stages) for module in modules), default=len(stages) - 1)

    def _stage(self, module: str, stages: Sequence[str]) -> int:
        return next((number for number, path in enumerate(stages) if module.startswith(f"{path}.")), 0)


class _Growth:
    """A batch that begins with each image's unchanged row, and to which copies of those are added on its way through the network.

    A row that differs from a later stage on shares all that was computed before with its image's unchanged row.

    Args:
        owners: for each row that the batch has in the end, the number of its image; first the unchanged rows, one an image.
        rows: with how many of them the batch begins.
        shared: the names of arguments that all rows share.
    """

    def __init__(self, owners: Sequence[int], rows: int, shared: Collection[str] = ()) -> None:
        self.owners = owners
        self.rows = rows
        self._shared = shared

    def expand(
        self, more: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A forward pre-hook of a stage: adds rows to the batch and repeats the stage's inputs for them."""
        self.rows += more
        filled: tuple[Any, ...] = tree_map(self._fill, args)
        return filled, {name: value if name in self._shared else tree_map(self._fill, value) for name, value in kwargs.items()}

    def _fill(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) == self.rows:
            return value
        return torch.cat([value, value[torch.tensor(self.owners[len(value) : self.rows], device=value.device)]])


_FIRST_CALL = "the first call"


def _chosen(inputs: Mapping[str, Any], rows: int, chosen: Sequence[int], shared: Collection[str]) -> dict[str, Any]:
    """The arguments of a call, reduced to some of its rows; what all rows share stays."""

    def choose(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != rows:
            return value
        return value[torch.tensor(chosen, device=value.device)]

    return {name: value if name in shared else tree_map(choose, value) for name, value in inputs.items()}


def _is_a_row(value: Any) -> bool:
    """Whether an input of a recorded step is one row's own."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == 1


def _may_share_a_call(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the inputs of two recorded steps differ in nothing but what belongs to rows."""
    (mine, structure), (theirs, other_structure) = tree_flatten(dict(one)), tree_flatten(dict(other))
    return structure == other_structure and all(_is_alike(*each) for each in zip(mine, theirs, strict=True))


def _is_alike(one: Any, other: Any) -> bool:
    if _is_a_row(one) and _is_a_row(other):
        return bool(one.shape == other.shape and one.dtype == other.dtype)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def joined(inputs: Sequence[Mapping[str, Any]], images: Sequence[int]) -> dict[str, Any]:
    """The inputs of recorded steps that share a call, with one row for each of these images."""

    def join(*values: Any) -> Any:
        if not _is_a_row(values[0]):
            return values[0]
        return torch.cat(values)[torch.tensor(images, device=values[0].device)]

    together: dict[str, Any] = tree_map(join, *map(dict, inputs))
    return together
