from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from neuroscope import (
    Concept,
    ContextSwap,
    HookGraph,
    IntegratedGradients,
    InvalidInput,
    NeuronAblation,
    Welch,
    rank,
    record,
    score,
)
from neuroscope.testbed import build
from neuroscope.testbed import planted as truth_of
from tests.families import tiny
from tests.localization.by_hand import noise
from tests.localization.planted import SMALL, STIPPLE, concept_of
from tests.numerics import NETWORK, rounding

PAIR = STIPPLE[:1]
SEED, STEP = 3, 1  # a single step of two is the second
WAY = 0.01  # of a finite difference, as a share of the whole change
KINDS = ("gradient", "integrated")


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return HookGraph(tiny.sd1())


def run(graph, method, layers=None, concept=None, seeds=(SEED,), **options):
    return rank(graph, concept or concept_of(PAIR), method, layers=layers, seeds=seeds, quiet=True, **(SMALL | options))


class ByHand:
    """A second implementation: plain hooks, autograd and numpy's quadrature, on the call of the denoiser at one step."""

    def __init__(self, graph: HookGraph, pair: tuple[str, str], paths: Sequence[str]) -> None:
        self.unet = graph.pipe.unet
        self.modules = [graph.module(graph.sites.at([path])[0]) for path in paths]
        seen: list[dict] = []
        handle = self.unet.register_forward_pre_hook(lambda _m, args, kwargs: seen.append(kwargs | {"args": args}), with_kwargs=True)
        graph.pipe(prompt=pair[0], generator=torch.Generator().manual_seed(SEED), output_type="latent", **SMALL)
        handle.remove()
        self.args = seen[STEP].pop("args")
        self.kwargs = seen[STEP]
        self.own, self.other = (graph.text.encode([prompt]) for prompt in pair)
        with torch.no_grad():
            self.ends = [[module(text) for module in self.modules] for text in (self.own, self.other)]
            self.source, goal = (self.call(text) for text in (self.own, self.other))
        self.way = goal - self.source

    def call(self, text: Tensor, activations: Sequence[Tensor] = ()) -> Tensor:
        handles = [
            module.register_forward_hook(lambda _m, _a, _out, put=put: put) for module, put in zip(self.modules, activations, strict=False)
        ]
        made = noise(self.unet, self.unet(*self.args, **(self.kwargs | {"encoder_hidden_states": text}))[0].double())
        for handle in handles:
            handle.remove()
        return made

    def share(self, activations: Sequence[Tensor]) -> Tensor:
        return ((self.call(self.own, activations) - self.source) * self.way).sum() / self.way.square().sum()

    def at(self, place: float) -> list[Tensor]:
        return [(own + place * (other - own)).requires_grad_() for own, other in zip(*self.ends, strict=True)]

    def parts(self, places: Sequence[float], weights: Sequence[float]) -> list[Tensor]:
        """For each module [neuron], the weighted sum of gradients at places of the way, times the whole change."""
        found = [torch.zeros(each.shape[-1], dtype=torch.float64) for each in self.ends[0]]
        for place, weight in zip(places, weights, strict=True):
            activations = self.at(place)
            slopes = torch.autograd.grad(self.share(activations), activations)
            for number, (slope, own, other) in enumerate(zip(slopes, *self.ends, strict=True)):
                found[number] += weight * (slope * (other - own)).double().sum(dim=(0, 1))
        return found


def rule(kind: str, samples: int) -> tuple[Sequence[float], Sequence[float]]:
    if kind == "integrated":
        places, weights = np.polynomial.legendre.leggauss(samples)
        return (places + 1) / 2, weights / 2
    return [0.0], [1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_those_of_plain_autograd(graph, kind):
    found = run(graph, IntegratedGradients(kind=kind, steps=1, samples=3, fidelity=0), (3, 9))
    expected = ByHand(graph, PAIR[0], found.sites.paths).parts(*rule(kind, 3))
    for path, parts in zip(found.sites.paths, expected, strict=True):
        assert found.scores[path].abs().max() > 1e-5
        torch.testing.assert_close(found.scores[path], parts, rtol=1e-3, atol=1e-6)


def test_a_gradient_is_a_finite_difference(graph):
    """One neuron's, at the run's own prompt, by moving it a little of its way."""
    found = run(graph, IntegratedGradients(kind="gradient", roles="value", steps=1, fidelity=0), 9)
    ((path, scores),) = found.scores.items()
    hand = ByHand(graph, PAIR[0], [path])
    for index in scores.abs().topk(3).indices.tolist():
        near = []
        for place in (WAY, -WAY):
            moved = hand.at(0.0)[0].detach().clone()
            moved[..., index] += place * (hand.ends[1][0] - hand.ends[0][0])[..., index]
            with torch.no_grad():
                near.append(float(hand.share([moved])))
        # a central difference errs by the square of its way, and by the rounding of two shares of size 1 over its way
        assert float(scores[index]) == pytest.approx((near[0] - near[1]) / (2 * WAY), rel=WAY**2, abs=rounding(terms=NETWORK) / WAY)


def test_all_parts_add_up_to_the_whole_way(graph):
    found = run(graph, IntegratedGradients(steps=1, samples=6, fidelity=0))
    assert sum(float(each.sum()) for each in found.scores.values()) == pytest.approx(1, abs=0.02)


def test_the_parts_of_some_sites_add_up_to_what_their_swap_does(graph):
    found = run(graph, IntegratedGradients(kind="integrated", steps=1, samples=6, fidelity=0), 14)
    hand = ByHand(graph, PAIR[0], found.sites.paths)
    with torch.no_grad(), graph.apply(ContextSwap(found.sites.paths, hand.other, rows="all")):
        moved = noise(hand.unet, hand.unet(*hand.args, **hand.kwargs)[0].double()) - hand.source
    expected = float((moved * hand.way).sum() / hand.way.square().sum())
    assert 0.01 < abs(expected) < 0.99
    assert sum(float(each.sum()) for each in found.scores.values()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "if-1"])
def test_planted_neurons_come_first_and_others_have_no_part(family):
    graph = HookGraph(tiny.exact(build(family, "neurons", 0)))
    truth = truth_of(graph.pipe)
    method = IntegratedGradients(steps=1, samples=2, fidelity=0)
    found = rank(graph, truth.concept, method, layers=truth.layers, pairs=2, quiet=True, **truth.generation)
    assert dict(replace(found, two_sided=True).top(6)) == truth.neurons
    weakest = replace(found, two_sided=True).to_frame()["score"].abs()
    assert weakest[6] < 1e-4 < weakest[5]


def test_neurons_that_read_the_concept_and_that_nothing_reads_have_no_part():
    graph = HookGraph(tiny.exact(build("sd1", "decoy", 1)))
    truth = truth_of(graph.pipe)
    ((path, decoys),) = truth.decoy_neurons.items()
    sites = graph.sites.at([path])
    welch = score(record(graph, truth.concept, sites, "all", quiet=True), Welch())
    method = IntegratedGradients(roles="value", steps=1, fidelity=0)
    found = rank(graph, truth.concept, method, layers=truth.decoy, pairs=2, quiet=True, **truth.generation)
    assert set(welch.top(len(decoys))[path]) == set(decoys)
    assert found.scores[path][list(decoys)].abs().max() < 1e-9


def test_pictures_are_averaged(graph):
    prompts = concept_of(STIPPLE[:2])
    method = IntegratedGradients(roles="value", steps=2, samples=2, fidelity=0)
    both = run(graph, method, 9, prompts, seeds=(3, 4))
    alone = [run(graph, method, 9, concept_of([pair]), seeds=(seed,)) for pair in STIPPLE[:2] for seed in (3, 4)]
    for path, scores in both.scores.items():
        torch.testing.assert_close(scores, torch.stack([each.scores[path] for each in alone]).mean(dim=0), rtol=1e-3, atol=1e-6)


def test_fidelity_is_the_rank_correlation_with_exact_effects(graph):
    """With every neuron of the sites sampled, exact ablation gives the other side."""
    method = IntegratedGradients(roles="value", steps=2, samples=2, fidelity=32)
    found = run(graph, method, 9, concept_of(STIPPLE[:2]))
    first = run(graph, replace(method, fidelity=0), 9)
    exact = run(graph, NeuronAblation(roles="value"), 9)
    ((path, scores),) = first.scores.items()
    assert found.fidelity.count == 32
    assert found.fidelity.correlation == pytest.approx(scipy.stats.spearmanr(scores, exact.scores[path]).statistic, abs=0.02)
    assert "rank correlation with exact effects" in repr(found)
    assert "over 32 random neurons, half of them from the top quarter" in repr(found)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [("gradient", 2 + 2 * (1 + 2 + 1 + 2)), ("integrated", 2 + 2 * (1 + 2 + 3 + 6))],
)
def test_a_backward_pass_counts_as_two_rows_more(graph, kind, rows):
    """The run's own two steps; on each of two frames the goal, both ends, the samples, and theirs backwards."""
    with tiny.counted(graph.denoiser) as calls:
        found = run(graph, IntegratedGradients(kind=kind, roles="value", samples=3, fidelity=0), 9)
    assert found.cost.nfe == rows
    assert sum(calls) < rows


@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_need_no_gradients_and_get_none(frozen):
    graph = HookGraph(tiny.sd1())
    graph.pipe.unet.requires_grad_(not frozen)
    found = run(graph, IntegratedGradients(roles="value", steps=1, samples=2, fidelity=0), 9)
    assert all(each.grad is None for each in graph.pipe.unet.parameters())
    assert max(float(each.abs().max()) for each in found.scores.values()) > 1e-5


def test_a_coarse_integral_is_warned_of():
    """With keys so large that the softmax saturates, one point of the way tells little of it."""
    graph = HookGraph(tiny.sd1())
    for site in graph.sites.where(role="key"):
        graph.module(site).weight.data *= 30
    with pytest.warns(UserWarning, match=r"miss what their sites do together by \+\d+% of the way with samples=1; give more"):
        run(graph, IntegratedGradients(steps=1, samples=1, fidelity=0))


def test_prompts_that_say_the_same_are_warned_of(graph):
    same = Concept("stipple", [PAIR[0][0]], [PAIR[0][0].upper()])  # tokenizers of CLIP take no notice of case
    with pytest.warns(
        UserWarning, match="the other prompt changes no prediction, so no neuron can be found by gradients; give other prompts"
    ):
        found = run(graph, IntegratedGradients(fidelity=0), 9, same)
    assert all(not each.any() for each in found.scores.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "integral"}, r"kind 'integral' is unknown; choose one of gradient, integrated; did you mean"),
        ({"steps": 0}, "steps=0 looks at no step of the schedule; give 1 or more"),
        ({"samples": 0}, "samples=0 takes no gradient; give 1 or more"),
        ({"fidelity": 2}, "fidelity=2 is too few neurons for a rank correlation; give at least 3, or 0 to leave it out"),
        ({"roles": "query"}, "role 'query' is unknown; choose one of key, value"),
    ],
)
def test_an_impossible_option_is_refused(untyped, options, message):
    with pytest.raises(InvalidInput, match=message):
        IntegratedGradients(**options)
