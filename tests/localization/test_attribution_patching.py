from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from neuroscope import AttributionPatching, HookGraph, InvalidInput, LatentShare, LayerScores, TeacherForced, localize
from neuroscope.pipeline.families import has_latents
from neuroscope.testbed import build
from neuroscope.testbed import planted as truth_of
from tests.families import tiny
from tests.localization.by_hand import Prediction
from tests.localization.planted import SMALL, STIPPLE, concept_of, planted

PAIR = STIPPLE[0]
SEED, STEP = 3, 1  # a single step of two is the second
SATURATED = 0  # of noise from which the steep softmax is flat for both prompts
LAYER = 13
PLAIN = AttributionPatching(samples=1, steps=1, fidelity=0)
INTEGRATED = AttributionPatching(samples=8, steps=1, fidelity=0)
RECOMPUTED = AttributionPatching(samples=1, recomputed=True, steps=1, fidelity=0)
METHODS = [pytest.param(each, id=repr(each)) for each in (PLAIN, INTEGRATED, RECOMPUTED)]
EXACT = TeacherForced(steps=1, fidelity=0)
GENERATION = {"sd1": SMALL, "if-1": {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 8, "width": 8, "clean_caption": False}}


def generation_of(graph: HookGraph) -> dict:
    return GENERATION["sd1" if has_latents(graph.pipe) else "if-1"]


def run(graph: HookGraph, method, pairs=(PAIR,), **options) -> LayerScores:
    return localize(graph, concept_of(pairs), method, LatentShare(), [SEED], quiet=True, **(generation_of(graph) | options))


def by_hand(graph: HookGraph, pair=PAIR) -> Prediction:
    return Prediction(graph.pipe, pair, SEED, STEP, generation_of(graph))


def sharpened(graph: HookGraph, factor: float, layers: Sequence[int] = range(16)) -> HookGraph:
    """Keys so large that the softmax saturates."""
    for site in graph.sites.where(role="key", layer=layers):
        graph.module(site).weight.data *= factor
    return graph


@pytest.fixture(scope="module", params=["sd1", "if-1"])
def model(request) -> HookGraph:
    """Random weights, with which every layer hears the text."""
    return HookGraph(tiny.PIPELINES[request.param]())


@pytest.fixture(scope="module")
def hand(model) -> Prediction:
    return by_hand(model)


@pytest.fixture(scope="module")
def sharp() -> HookGraph:
    return sharpened(HookGraph(tiny.sd1()), 10)


def by_layer(products: list[torch.Tensor]) -> list[float]:
    """The sums over tokens and neurons; a layer's keys and values stand side by side."""
    return np.reshape([float(each.double().sum()) for each in products], (-1, 2)).sum(axis=1).tolist()


def near(expected: list[float]):
    return pytest.approx(expected, rel=1e-3, abs=1e-5)


class TestGradients:
    def test_scores_are_gradients_times_what_the_other_prompt_changes(self, model, hand):
        """Of keys and values, summed over tokens, by autograd through one call of the denoiser."""
        changes = [other - own for own, other in zip(*(hand.outputs(hand.texts, text) for text in (hand.own, hand.other)), strict=True)]
        expected = by_layer([slope * change for slope, change in zip(hand.slopes(hand.texts), changes, strict=True)])
        assert max(expected) > 0.05
        assert list(run(model, PLAIN).scores) == near(expected)

    def test_for_sufficiency_the_two_prompts_change_places(self, graph):
        found = run(graph, AttributionPatching(samples=1, steps=1, fidelity=0, direction="sufficiency"))
        assert found.scores == near(run(graph, PLAIN, [PAIR[::-1]]).scores)
        assert found.effects.prompts == (PAIR[0],)


class TestIntegrals:
    def test_all_layers_add_up_to_the_whole_way(self, sharp):
        """Completeness, which a gradient alone does not have, and the nearer the more samples there are."""
        missed = [abs(sum(run(sharp, AttributionPatching(samples=samples, steps=1, fidelity=0)).scores) - 1) for samples in (1, 4, 16)]
        assert missed[0] > 0.1 > 0.02 > missed[1] > missed[2]
        assert missed[2] < 1e-3

    def test_they_add_up_to_what_keys_and_values_do_without_pooled_text(self, model, hand):
        """Which is all of the way where there is none."""
        others = dict(zip(hand.texts, hand.outputs(hand.texts, hand.other), strict=True))
        with torch.no_grad():
            moved = float(hand.share(hand.call(hand.own, {module: lambda _out, other=other: other for module, other in others.items()})))
        assert (moved > 0.999) == has_latents(model.pipe)
        assert sum(run(model, INTEGRATED).scores) == pytest.approx(moved, abs=0.01)

    def test_they_are_the_mean_of_gradients_along_the_way(self, sharp):
        """By the midpoints of equal steps, instead of Gauss and Legendre's rule."""
        hand, count = by_hand(sharp), 12
        both = list(zip(hand.texts, *(hand.outputs(hand.texts, text) for text in (hand.own, hand.other)), strict=True))
        total = np.zeros(len(hand.layers))
        for place in (np.arange(count) + 0.5) / count:
            moved = {module: lambda out, place=place, other=other: out.lerp(other, place) for module, _, other in both}
            slopes = hand.slopes(hand.texts, moved)
            total += by_layer([slope * (other - own) for slope, (_, own, other) in zip(slopes, both, strict=True)])
        assert run(sharp, AttributionPatching(samples=16, steps=1, fidelity=0)).scores == pytest.approx((total / count).tolist(), abs=2e-3)


def local_changes(hand: Prediction) -> list[torch.Tensor]:
    """What the other prompt changes in what each attention puts out, all else equal."""
    layers = range(len(hand.layers))
    return [hand.attention(layer, other=True).said() - hand.attention(layer).said() for layer in layers]


def products(slopes: list[torch.Tensor], changes: list[torch.Tensor]) -> np.ndarray:
    return np.array([float((slope[0].double() * change).sum()) for slope, change in zip(slopes, changes, strict=True)])


class TestRecomputed:
    def test_scores_are_gradients_at_the_outputs_times_their_exact_changes(self, model, hand):
        expected = products(hand.slopes([layer.to_out[0] for layer in hand.layers]), local_changes(hand))
        assert expected.max() > 0.05
        assert list(run(model, RECOMPUTED).scores) == near(expected.tolist())

    def test_it_repairs_what_saturation_hides(self):
        """The last layer carries all with a saturated softmax; behind it there is little that is not linear."""
        graph = sharpened(planted(STIPPLE[:2], {15: STIPPLE}, louder=1), 30, [15])
        methods, options = (EXACT, PLAIN, RECOMPUTED, INTEGRATED), generation_of(graph)
        found = [localize(graph, concept_of([PAIR]), each, LatentShare(), [SATURATED], quiet=True, **options) for each in methods]
        exact, plain, recomputed, integrated = (each.scores[15] for each in found)
        assert exact == pytest.approx(1, abs=1e-3)
        assert abs(plain - exact) > 0.3
        assert abs(recomputed - exact) < 0.05 > abs(integrated - exact)


@pytest.mark.parametrize("method", METHODS)
class TestPlants:
    def test_the_planted_layer_comes_first_and_others_have_no_part(self, method, plant):
        found = run(plant, method)
        assert found.top(1) == [LAYER]
        assert found.scores[LAYER] > 0.8
        assert np.abs(np.delete(found.scores, LAYER)).max() < 1e-4

    def test_so_it_does_on_deepfloyd(self, method, deepfloyd):
        truth = truth_of(deepfloyd.pipe)
        found = localize(deepfloyd, truth.concept, method, LatentShare(), [0], pairs=1, quiet=True, **truth.generation)
        assert found.top(1) == list(truth.layers)
        assert np.abs(np.delete(found.scores, truth.layers)).max() < 1e-4 < 0.2 < max(found.scores)

    def test_where_nothing_passes_nothing_is_scored(self, method, blocked):
        found = run(blocked, method)
        assert set(found.scores) == {0.0}
        assert found.verdict.startswith("no layer stands out")


@pytest.fixture(scope="module")
def plant() -> HookGraph:
    return planted(STIPPLE[:2], {LAYER: STIPPLE})


@pytest.fixture(scope="module")
def deepfloyd() -> HookGraph:
    return HookGraph(tiny.exact(build("if-1", "layer", 0)))


@pytest.fixture(scope="module")
def blocked() -> HookGraph:
    return planted(STIPPLE[:2], {})


@pytest.mark.parametrize(
    ("method", "forwards", "others"),
    [
        (PLAIN, 1 + 2 + 1, 2 * 1),
        (AttributionPatching(samples=3, steps=1, fidelity=0), 1 + 2 + 3, 2 * 3),
        (RECOMPUTED, 1 + 1 + 1, 2 * 1),
    ],
    ids=repr,
)
def test_a_backward_pass_counts_as_two_rows_more(graph, method, forwards, others):
    """The run's two steps; at the frame the other prompt's prediction, both ends or all attentions, and the samples.

    Attentions that are computed again, as they are and with the other prompt, count as the share of a row that they take.
    """
    with tiny.counted(graph.denoiser) as calls:
        found = run(graph, method)
    again = 2 * share_of_attentions(graph) if method.recomputed else 0
    assert sum(calls) == 2 + forwards
    assert found.cost.nfe == pytest.approx(2 + forwards + others + again, rel=1e-9)


def share_of_attentions(graph: HookGraph) -> float:
    """Of the floating-point operations of one prediction, those in cross-attentions."""
    with FlopCounterMode(display=False) as counter:
        tiny.draw(graph.pipe, **SMALL | {"guidance_scale": 1.0, "num_inference_steps": 1})
    counts = {path: sum(each.values()) for path, each in counter.get_flop_counts().items()}
    unet = next(path for path in counts if path.endswith("UNet2DConditionModel"))
    return sum(count for path, count in counts.items() if path.startswith(unet) and path.endswith("attn2")) / counts[unet]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0 takes no gradient; give 1 or more"),
        ({"recomputed": True}, "recomputed attention is one way to repair saturation and samples=4 another; give samples=1"),
        ({"steps": 0}, "steps=0 looks at no step of the schedule; give 1 or more"),
        ({"fidelity": 2}, "fidelity=2 is too few layers for a rank correlation; give at least 3, or 0 to leave it out"),
        ({"direction": "necesity"}, r"direction 'necesity' is unknown; choose one of necessity, sufficiency; did you mean 'necessity'\?"),
    ],
)
def test_an_impossible_option_is_refused(untyped, options, message):
    with pytest.raises(InvalidInput, match=message):
        AttributionPatching(**options)
