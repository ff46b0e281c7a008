"""What an intervention is, and what it is told when it acts."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from torch import Tensor

from neuroscope.core.artifacts import Artifact
from neuroscope.core.conditions import PLAIN, BatchLayout, Conditions, Rows
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.sites import Site, Sites

#: What another prompt at a layer means where blocks rewrite the text: the image's reads alone, or the block's text altogether.
Definition = Literal["edge", "stream"]
_ROUNDING = 1e-9  # so that step 15 of 50 is not before 3 * 0.1


class Taking(NamedTuple):
    """What an intervention takes of other prompts' text, where blocks rewrite it.

    Attributes:
        conditions: of these prompts.
        definition: what of the text its layers take.
        rows: the rows of the batch that take it.
        steps: the part of the schedule in which they do.
    """

    conditions: Conditions
    definition: Definition
    rows: Rows
    steps: tuple[float, float]


def lies_within(steps: tuple[float, float], step: int | None, count: int | None) -> bool:
    """Whether a step lies in a part of a schedule of so many, given as fractions; yes where the step is not known."""
    if steps == (0.0, 1.0) or step is None or count is None:
        return True
    return steps[0] <= step / count + _ROUNDING < steps[1]


@dataclass(frozen=True)
class Call:
    """One call of a site's module inside a running pipeline.

    Attributes:
        site: the site.
        step: the denoising step, counted from 0; None outside a pipeline's schedule.
        steps: the number of denoising steps; None outside a pipeline's schedule.
        layout: which rows of the batch carry the prompt; None where that is not known, because the denoiser was not called by the
            graph's own pipeline.
        project: the module's own computation on another input, without hooks.
        read: what the module reads of other prompts in a batch of so many rows, as `graph.text.read` gives it.
        beside: how many tokens behind the prompt's a text-side site reads that say something else.
        reading: at keys and values of a text that blocks rewrite, whether this is what the image reads (True) or the block's own pass
            (False), which runs first and gives the text to the next block; None at all other sites.
    """

    site: Site
    step: int | None
    steps: int | None
    layout: BatchLayout | None
    project: Callable[[Tensor], Tensor] = field(repr=False)
    read: Callable[[Conditions, int], Tensor] = field(repr=False)
    beside: int = 0
    reading: bool | None = None

    @property
    def guided(self) -> bool | None:
        """Whether the batch holds other parts than the one that carries the prompt; None where that is not known."""
        return None if self.layout is None else len(self.layout.parts) > 1

    @property
    def parts(self) -> int:
        """How many rows the batch has for each image, as far as is known."""
        return len((self.layout or PLAIN).parts)

    def rows(self, rows: Rows, batch: int) -> slice:
        """The batch rows meant: all, or only those that carry the prompt (none, where a call has no such rows).

        Raises:
            InvalidInput: it is not known which rows carry the prompt.
        """
        if rows == "conditional" and self.layout is None and batch > 1:
            raise InvalidInput(
                f"the denoiser was called with {counted(batch, 'row')}, and not by this graph's pipeline, so it is not known which of them "
                'carry the prompt; run `graph.pipe`, make a graph of the pipeline that you run, or use rows="all"'
            )
        return (self.layout or PLAIN).rows(rows, batch)

    def within(self, steps: tuple[float, float]) -> bool:
        """Whether this call's step lies in a part of the schedule, given as fractions from 0 (first) to 1 (end)."""
        if steps != (0.0, 1.0) and (self.step is None or self.steps is None):
            cause = "was called on its own" if self.layout is None else "was called at a timestep that is not the schedule's next"
            raise InvalidInput(f"steps={steps} needs a pipeline's schedule, but the denoiser {cause}; use (0.0, 1.0) there")
        return lies_within(steps, self.step, self.steps)


@dataclass(frozen=True)
class ModelSpec:
    """All that an intervention may ask about a model before it runs.

    Attributes:
        family: the denoiser's family.
        sites: all sites with their widths, in execution order.
        input_widths: by path, the channels that a site's module reads; of sites whose modules are linear.
        context_channels: the channels of a prompt's context.
        token_count: the tokens of a prompt; None where the pipeline's tokenizers do not agree.
        has_summary: whether prompts have a pooled summary beside their context.
        has_mask: whether the denoiser is told by a mask which of a prompt's tokens are none of its words.
        tokens_beside: how many tokens behind the prompt's text-side sites read that say something else.
        wordless: the paths of text-side sites whose positions are no tokens of the prompt.
        rewritten: the paths of the keys and values that read a text which blocks rewrite, so that it depends on the image as well.
        shared: the paths of those of them whose weights are the image's as well.
    """

    family: str
    sites: Sites
    input_widths: Mapping[str, int]
    context_channels: int
    token_count: int | None
    has_summary: bool
    has_mask: bool
    wordless: frozenset[str] = frozenset()
    tokens_beside: int = 0
    rewritten: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()

    @property
    def read_in_runs(self) -> frozenset[str]:
        """The paths of `rewritten` sites whose text depends on more than the prompt, so that it is known in runs alone."""
        return self.rewritten - set(self.sites.where(text_only=True).paths)


class Encodes(Protocol):
    """What makes conditions of prompts."""

    def conditions(self, prompts: Sequence[str]) -> Conditions:
        """What a model's own text encoders make of prompts."""
        ...


class Encoder(Protocol):
    """A model that encodes prompts, such as a `HookGraph`."""

    @property
    def text(self) -> Encodes:
        """Its text side."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    @property
    def model(self) -> str:
        """The model's name."""
        ...


class Intervention(Artifact):
    """A change to some sites, active inside `HookGraph.apply`. A frozen dataclass that holds data only.

    Attributes:
        paths: the paths of the changed sites, a field or a property.
    """

    if TYPE_CHECKING:

        @property
        def paths(self) -> Collection[str]:
            """The paths of the changed sites."""

    def pooled_text(self, sites: Sites) -> str:
        """Which prompt feeds the pooled text path of a model with these sites, by which it reaches every block; "" where it has none."""
        pooled = sites.where(role="pooled").paths
        if not pooled:
            return ""
        return f"changed by the {self.kind}" if set(pooled) & set(self.paths) else "the run's own prompt"

    @property
    def made_on(self) -> str:
        """The name of the model that it was made on; "" where that is not known."""
        return ""

    @property
    def changes_input(self) -> bool:
        """Whether `on_input` is called before the sites' modules, rather than `on_output` on the sites."""
        return False

    @property
    def taking(self) -> Taking | None:
        """What it takes of other prompts' text, in models whose blocks rewrite the text; None where it takes none."""
        return None

    def on_input(self, context: Tensor, call: Call) -> Tensor:
        """What a site's module reads instead of `context`."""
        return context

    def on_output(self, activation: Tensor, call: Call) -> Tensor:
        """What a site becomes instead of `activation`."""
        return activation

    def masked(self, sites: Sites) -> Collection[str]:
        """The paths of the keys beside which attention is told by `on_mask` which tokens it sees, in a model with these sites."""
        return ()

    def on_mask(self, bias: Tensor, call: Call) -> Tensor:
        """What a layer's attention adds to its scores instead of `bias`, where its model masks tokens; `call.read` gives it of prompts."""
        return bias

    @abc.abstractmethod
    def check(self, spec: ModelSpec) -> None:
        """Raises before any image is made if the intervention does not fit the model."""


def counted_sites(paths: Collection[str]) -> str:
    """The sites of a change in a few words."""
    first, *others = paths
    return f"{first} and {len(others)} more" if others else first


def check_schedule_part(steps: tuple[float, float]) -> None:
    """Raises InvalidInput unless `steps` are two fractions of the schedule in order."""
    pair = steps if isinstance(steps, Sequence) and not isinstance(steps, str) and len(steps) == 2 else (1.0, 0.0)
    if any(isinstance(each, bool) or not isinstance(each, Real) for each in pair) or not 0 <= pair[0] < pair[1] <= 1:
        raise InvalidInput(f"steps={steps!r} is not a part of the schedule; give two fractions in order, such as (0.0, 0.5)")
