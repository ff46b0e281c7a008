"""Null tests: compare a ranking with rankings of permuted labels, or of rotated bases.

A large score alone says little: among thousands of neurons some are large by chance. A null test draws recordings in which
nothing is to be found, ranks them by the same method, and reports how often they reach what was observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from neuroscope.attribution import Attribution, score
from neuroscope.attribution.recording import ARMS, Recording
from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, choose, counted
from neuroscope.core.results.scores import NeuronScores
from neuroscope.core.statistics import Moments

Null = Literal["rotated", "permuted"]
Samples = Mapping[str, Mapping[str, Float[Tensor, "prompt neuron"]]]


@dataclass(frozen=True)
class NullTest:
    """A statistic of a ranking's top neurons, and its distribution under a null hypothesis.

    Attributes:
        observed: the statistic of the recording: against rotated bases, the share of all neurons' strength that the top
            ones hold (concentration); against permuted labels, the mean strength of the top ones.
        expected: its mean over the draws of the null.
        low, high: the draws' 2.5 % and 97.5 % quantiles.
        p_value: `(1 + draws that are not less) / (1 + draws)`, which is never 0 (Phipson and Smyth 2010).
        top: how many neurons.
        null: what was drawn: "rotated" bases or "permuted" labels.
        draws: how many.
    """

    observed: float
    expected: float
    low: float
    high: float
    p_value: float
    top: int
    null: Null
    draws: int

    @property
    def excess(self) -> float:
        """How much more was observed than expected."""
        return self.observed - self.expected

    def __str__(self) -> str:
        p_value = "p < 0.01" if self.p_value < 0.01 else f"p = {self.p_value:.2f}"
        if self.null == "rotated":
            interval = f"{100 * self.expected:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"
            said = f"top {self.top} hold {100 * self.observed:.0f} % of the strength; rotated bases {interval}"
            return f"{said}; excess {100 * self.excess:.0f} points, {p_value}"
        interval = f"{self.expected:.2g} [{self.low:.2g}, {self.high:.2g}]"
        return f"top {self.top} have mean strength {self.observed:.2g}; permuted labels {interval}; excess {self.excess:.2g}, {p_value}"


def null_test(
    recording: Recording,
    method: Attribution,
    null: Null = "rotated",
    *,
    top: int,
    heads: Mapping[str, int] | None = None,
    draws: int = 200,
    seed: int = 0,
    quiet: bool = False,
) -> NullTest:
    """Compares a ranking with the same ranking under a null hypothesis.

    "permuted" asks whether any neuron responds to the concept. It exchanges the two labels within random pairs of prompts, or
    deals them anew where the arms differ in size. No neuron responds to such labels.

    "rotated" asks whether single neurons are special, or only the space that they span. It rotates the keys (or values) of each
    attention head at random. Rotate the queries (or the output projection) with them, and the model makes the same images: keys
    and values have no preferred basis. A concept that is read along some direction is then concentrated in few neurons only by
    chance. An excess over this null belongs to the neurons themselves.

    Both cost no image: the statistics are computed from the recording's samples.

    Args:
        recording: made with `keep_samples=True`.
        method: such as `Welch()`.
        null: "rotated" or "permuted".
        top: how many neurons count as top.
        heads: for "rotated", the number of attention heads of each path: `graph.heads(recording.sites)`.
        draws: how many draws of the null.
        seed: of the draws.
        quiet: show no progress bar.

    Raises:
        InvalidInput: a recording without samples, scores that depend on the weights (for "rotated"), no
            heads, or a number that is not allowed.
    """
    choose("null", null, ("rotated", "permuted"))
    _check_kinds(recording, method, top, heads, draws, seed, quiet)
    _check(recording, method, null, top, heads, draws)
    plain = {arm: {path: values.double() for path, values in recording.samples[arm].items()} for arm in ARMS}
    statistic = _share if null == "rotated" else _mean
    rng = torch.Generator().manual_seed(seed)

    def found(samples: Samples) -> float:
        return statistic(_strengths(score(_with(recording, samples), method)), top)

    observed = found(plain)
    drawn = np.empty(draws)
    for number in tqdm(range(draws), desc=f"{null} nulls", disable=quiet):
        drawn[number] = found(_rotated(plain, heads, rng) if heads is not None and null == "rotated" else _permuted(plain, rng))
    low, high = np.quantile(drawn, [0.025, 0.975])
    p_value = (1 + int((drawn >= observed).sum())) / (1 + draws)
    return NullTest(observed, float(drawn.mean()), float(low), float(high), p_value, top, null, draws)


def _check_kinds(recording: Any, method: Any, top: Any, heads: Any, draws: Any, seed: Any, quiet: Any) -> None:
    checks.instance("recording", recording, Recording, "ns.record(graph, concept, keep_samples=True)")
    checks.instance("method", method, Attribution, "ns.Welch()")
    for name, value in (("top", top), ("draws", draws)):
        checks.whole(name, value, least=-np.inf)
    checks.seed("seed", seed)
    checks.flag("quiet", quiet)
    if heads is not None:
        for path, count in checks.instance("heads", heads, Mapping, "graph.heads(recording.sites)").items():
            checks.whole(f"the heads of {path}", count, least=-np.inf)


def _check(recording: Recording, method: Attribution, null: Null, top: int, heads: Mapping[str, int] | None, draws: int) -> None:
    if not recording.samples:
        raise InvalidInput("nulls are drawn from single observations; record with keep_samples=True")
    if not 1 <= top <= recording.sites.neuron_count:
        raise InvalidInput(f"top={top} is not possible here; choose from 1 to {recording.sites.neuron_count}")
    if draws < 1:
        raise InvalidInput(f"draws={draws} makes no null; give 1 or more, such as 200")
    if null == "permuted":
        return
    if heads is None or (missing := [path for path in recording.sites.paths if path not in heads]):
        named = recording.sites.paths[0] if heads is None else missing[0]
        raise InvalidInput(f"the heads of {named} are not given, within which to rotate; give heads=graph.heads(recording.sites)")
    for site in recording.sites:
        if heads[site.path] < 1 or site.width % heads[site.path]:
            raise InvalidInput(
                f"{site.path} has {counted(site.width, 'neuron')}, which are not {counted(heads[site.path], 'head')} of one size; "
                "give the model's"
            )
    if _weighs(recording, method):
        raise InvalidInput(
            f"{method!r} weighs neurons by their outgoing weights, whose rotation a recording does not hold; "
            'rank by another method, such as Welch(), or use null="permuted"'
        )


def _weighs(recording: Recording, method: Attribution) -> bool:
    """Whether scores depend on the norms of outgoing weights: found out by scoring once with other norms."""
    other = {path: norm * (1 + torch.arange(len(norm))) for path, norm in recording.outgoing.items()}
    one, two = (_strengths(score(each, method)) for each in (recording, replace(recording, outgoing=other)))
    return not torch.equal(one, two)


def _strengths(scores: NeuronScores) -> Float[Tensor, "neuron"]:
    """How far each neuron of all sites is from neutral, in the method's units; see `NeuronScores.strength`."""
    return torch.cat([scores.strength(path) for path in scores.sites.paths])


def _share(strengths: Float[Tensor, "neuron"], top: int) -> float:
    """The share of all neurons' strength that the strongest `top` hold, from 0 to 1; strengths below 0, of one-sided scores, count as 0."""
    held = strengths.clamp(min=0)
    return float(held.topk(top).values.sum() / held.sum()) if held.any() else top / len(held)


def _mean(strengths: Float[Tensor, "neuron"], top: int) -> float:
    """The mean strength of the strongest `top`."""
    return float(strengths.topk(top).values.mean())


def _with(recording: Recording, samples: Samples) -> Recording:
    """The recording with other samples, and with the moments of these."""
    moments = {arm: {path: Moments.of(values) for path, values in samples[arm].items()} for arm in ARMS}
    return replace(recording, moments=moments, samples=samples)


def _permuted(samples: Samples, rng: torch.Generator) -> Samples:
    """The samples with one exchange of labels, the same for all sites, so that neurons keep their correlations."""
    present, absent = (samples[arm] for arm in ARMS)
    counts = [len(next(iter(arm.values()))) for arm in (present, absent)]
    order = torch.randperm(sum(counts), generator=rng)
    if counts[0] == counts[1]:
        exchanged = torch.rand(counts[0], generator=rng) < 0.5
        first, second = torch.arange(counts[0]), torch.arange(counts[0]) + counts[0]
        order = torch.cat([torch.where(exchanged, second, first), torch.where(exchanged, first, second)])
    dealt = {path: torch.cat([present[path], absent[path]])[order].split(counts) for path in present}
    return {arm: {path: each[number] for path, each in dealt.items()} for number, arm in enumerate(ARMS)}


def _rotated(samples: Samples, heads: Mapping[str, int], rng: torch.Generator) -> Samples:
    """The samples with each head of each site rotated by a matrix of its own, the same for both arms."""
    turned: dict[str, dict[str, Tensor]] = {arm: {} for arm in ARMS}
    for path, values in samples[ARMS[0]].items():
        count = heads[path]
        turn = _rotations(count, values.shape[1] // count, rng)
        for arm in ARMS:
            by_head = samples[arm][path].unflatten(1, (count, -1))
            turned[arm][path] = torch.einsum("phn,hnm->phm", by_head, turn).flatten(1)
    return turned


def _rotations(count: int, size: int, rng: torch.Generator) -> Float[Tensor, "head size size"]:
    """Orthogonal matrices, each as likely as any other (Mezzadri 2007): QR with the diagonal of R made positive."""
    matrix, triangle = torch.linalg.qr(torch.randn(count, size, size, generator=rng, dtype=torch.float64))
    result: Float[Tensor, "head size size"] = matrix * triangle.diagonal(dim1=1, dim2=2).sign()[:, None, :]
    return result
