"""The base class of methods that score neurons from a recording, and `score`, which applies one."""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.attribution.recording import Recording
from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.scores import NeuronScores
from neuroscope.core.statistics import Moments


class Evidence(NamedTuple):
    """What was recorded at one site.

    Attributes:
        present, absent: the moments of both arms, [neuron], or [step, neuron] where the recording keeps steps apart.
        samples: all observations of both arms, [prompt, neuron] in float32; None where they were not kept.
        norm: the norm of the weights that read each neuron; None where they are quantised.
        path: the site's path.
    """

    present: Moments
    absent: Moments
    samples: tuple[Float[Tensor, "prompt neuron"], Float[Tensor, "prompt neuron"]] | None
    norm: Float[Tensor, "neuron"] | None
    path: str

    @property
    def outgoing(self) -> Float[Tensor, "neuron"]:
        """The norm of the weights that read each neuron.

        Raises:
            InvalidInput: they are quantised, so that it could not be read.
        """
        if self.norm is None:
            raise InvalidInput(f"the weights that read {self.path} are quantised, so their norms are not known; use a method without them")
        return self.norm


class Scored(NamedTuple):
    """The scores of one site, and p-values where the method is a test.

    Attributes:
        score: float64, in the method's own units; higher means more of the concept.
        p_value: of the same shape, from 0 to 1, not corrected for the number of neurons; None where the method has none.
    """

    score: Float[Tensor, "*step neuron"]
    p_value: Float[Tensor, "*step neuron"] | None = None


class Attribution(abc.ABC):
    """A method that scores each neuron of a site from a recording. A frozen dataclass with one `__call__`.

    Attributes:
        neutral: the score of a neuron that does not respond to the concept.
        two_sided: whether scores below neutral count like those above it.
        needs_samples: whether the recording must keep every observation.
        antisymmetric: whether exchanging the arms mirrors each score at neutral.
    """

    neutral: ClassVar[float] = 0.0
    two_sided: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False
    antisymmetric: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(self, evidence: Evidence) -> Scored:
        """Scores the neurons of one site, in float64; raises InvalidInput where the recording lacks what the method needs."""


def score(recording: Recording, method: Attribution) -> NeuronScores:
    """Scores every recorded neuron by how strongly it responds to the concept.

    A recording by step is scored at each step; a neuron's score is then its mean over steps, without a p-value.

    Args:
        recording: of at least two prompts in each arm.
        method: such as `Welch()`.

    Returns:
        Scores of all recorded sites, float64 [neuron] each, with what they were made by.

    Raises:
        InvalidInput: the method needs samples that were not kept, at least two prompts in each arm, or norms of quantised
            weights; or a score is not finite, which the message names by method and site.
    """
    checks.instance("recording", recording, Recording, "ns.record(graph, concept)")
    checks.instance("method", method, Attribution, "ns.Welch()")
    if method.needs_samples and not recording.samples:
        raise InvalidInput(f"{method!r} compares single observations; record with keep_samples=True")
    if min(recording.count("present"), recording.count("absent")) < 2:
        counts = f"{recording.count('present')} present and {recording.count('absent')} absent"
        raise InvalidInput(f"{method!r} needs at least two prompts in each arm, not {counts}")
    scores, p_values = {}, {}
    for path in recording.sites.paths:
        found = method(_evidence(recording, path))
        _expect_finite(method, path, found)
        scores[path] = found.score.mean(dim=0) if found.score.ndim == 2 else found.score
        if found.p_value is not None and found.p_value.ndim == 1:
            p_values[path] = found.p_value
    return NeuronScores(
        sites=recording.sites,
        scores={path: each.to(torch.float64) for path, each in scores.items()},
        p_values=p_values,
        neutral=method.neutral,
        two_sided=method.two_sided,
        provenance=replace(recording.provenance, method=repr(method)),
    )


def _expect_finite(method: Attribution, path: str, found: Scored) -> None:
    """Raises InvalidInput where a score or a p-value of a site is NaN or infinite."""
    for name, values in (("scores", found.score), ("p-values", found.p_value)):
        if values is not None and not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).sum())
            raise InvalidInput(f"{method!r} gives {bad:,} {name} of {path} that are NaN or infinite; record again, or use another method")


def _evidence(recording: Recording, path: str) -> Evidence:
    """What a recording holds of one site."""
    samples = (recording.samples["present"][path], recording.samples["absent"][path]) if recording.samples else None
    return Evidence(recording.moments["present"][path], recording.moments["absent"][path], samples, recording.outgoing.get(path), path)
