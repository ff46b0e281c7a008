"""The base class of methods that make their own images: everything that `localize` runs."""

from __future__ import annotations

import abc
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from neuroscope.core.errors import InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.scores import NeuronScores
from neuroscope.generation.arguments import steps_of
from neuroscope.generation.experiment import Experiment

Found = TypeVar("Found", bound=LayerScores | NeuronScores)


@dataclass(frozen=True, repr=False)
class Localization(abc.ABC, Generic[Found]):
    """A method that finds the layers or the neurons that control a concept. A frozen dataclass with one `__call__`.

    To add a method, derive a frozen dataclass whose fields are its options, and compute the scores in `__call__`.
    """

    def __repr__(self) -> str:
        """The class name with the options that differ from their defaults, as results store it."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @abc.abstractmethod
    def __call__(self, experiment: Experiment) -> Found:
        """Scores the layers or the neurons.

        Args:
            experiment: the model, prompts, seeds and metric.

        Raises:
            InvalidInput: an option that does not fit the model.
        """


def check_fits(experiment: Experiment, method: Any, count: int, counted: str) -> None:
    """Refuses more steps than each run has, or more exact effects than there are layers or neurons.

    A method's own defaults are never refused.

    Args:
        experiment: the runs.
        method: a method with the options `steps` and `fidelity`.
        count: how many layers or neurons it scores.
        counted: "layers" or "neurons", for the message.

    Raises:
        InvalidInput: `steps` or `fidelity` is too large.
    """
    run = steps_of(experiment.graph.pipe, experiment.generation)
    if run is not None and method.steps > max(run, type(method).steps):
        raise InvalidInput(f"steps={method.steps} are more than the {run} steps that are run; give at most these")
    if method.fidelity > max(count, type(method).fidelity):
        raise InvalidInput(f"fidelity={method.fidelity} are more than the model's {count} {counted}; give at most these")
