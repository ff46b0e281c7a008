"""What an intervention is."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING

from torch import Tensor

from neuroscope._errors import InvalidInput
from neuroscope.artifacts import Artifact
from neuroscope.calls import Call
from neuroscope.interventions.linear_update import LinearUpdate, Weights

if TYPE_CHECKING:
    from neuroscope.graph import HookGraph
    from neuroscope.sites import Site


class Intervention(Artifact):
    """A change to some sites, active inside `HookGraph.apply`. A frozen dataclass that holds data only.

    Attributes:
        paths: the paths of the changed sites.
    """

    paths: Collection[str]

    def pooled_text(self, graph: HookGraph) -> str:
        """Which prompt feeds the pooled text path, by which it reaches every block; "" where the model has none."""
        pooled = graph.sites.where(role="pooled").paths
        if not pooled:
            return ""
        return f"changed by the {self.kind}" if set(pooled) & set(self.paths) else "the run's own prompt"

    @property
    def alike_in_layer(self) -> bool:
        """Whether `on_input` makes the same of the same input at all sites of a layer, so that it is asked once for all of them."""
        return False

    @property
    def changes_input(self) -> bool:
        """Whether `on_input` is called before the sites' modules, rather than `on_output` on the sites."""
        return False

    def on_input(self, context: Tensor, call: Call) -> Tensor:
        """What a site's module reads instead of `context`."""
        return context

    def on_output(self, activation: Tensor, call: Call) -> Tensor:
        """What a site becomes instead of `activation`."""
        return activation

    def linear_updates(self, graph: HookGraph, site: Site, weights: Weights) -> Iterator[LinearUpdate]:
        """The changes of weights that do the same at a site, given the current weights.

        Raises:
            InvalidInput: no change of weights does the same.
        """
        raise InvalidInput(f"a {self.kind} cannot be written into weights; apply it instead")

    def expect_foldable(self) -> None:
        """Raises InvalidInput for options that weights cannot hold: they act on all rows, tokens and steps alike."""
        wanted = {"rows": "all", "tokens": None, "steps": (0.0, 1.0)}
        for name, value in wanted.items():
            given = getattr(self, name, value)
            if given != value:
                raise InvalidInput(
                    f"{self.kind} with {name}={given!r} cannot be written into weights, which act on all rows, tokens and steps alike; "
                    f"apply it instead, or make it with {name}={value!r}"
                )

    @abc.abstractmethod
    def check(self, graph: HookGraph) -> None:
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
