import math

import numpy as np
import pytest
import torch

from neuroscope import Flipped, Halving, HookGraph, InvalidInput, LatentShare, LayerScores, LocoGen, Patch, localize
from neuroscope.testbed import build
from neuroscope.testbed import planted as truth_of
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, concept_of, planted

LAYERS, STEPS = 16, 2
WHOLE = Patch(tuple(range(LAYERS)))


def run(graph: HookGraph, method, pairs=STIPPLE[:1], **options) -> LayerScores:
    return localize(graph, concept_of(pairs), method, LatentShare(), [3], quiet=True, keep_images=0, **(SMALL | options))


def run_built(graph: HookGraph, method, metric=LatentShare()) -> LayerScores:
    truth = truth_of(graph.pipe)
    return localize(graph, truth.concept, method, metric, [0], pairs=2, quiet=True, keep_images=0, **truth.generation)


def halves_of(window: Patch) -> tuple[Patch, Patch]:
    middle = len(window.layers) // 2
    return Patch(window.layers[:middle]), Patch(window.layers[middle:])


def smallest_window(layers: tuple[int, ...]) -> Patch:
    """The smallest that halving can arrive at with all of these layers in it."""
    window = WHOLE
    while inside := [half for half in halves_of(window) if set(layers) <= set(half.layers)]:
        (window,) = inside
    return window


def runs_for(layers: tuple[int, ...]) -> int:
    """Runs an image: the two ends, the whole window, and two halves of each window in which some of these layers are not alone."""
    windows, runs = [WHOLE], 3
    while windows:
        halves = halves_of(windows.pop())
        runs += 2
        windows += [half for half in halves if set(layers) & set(half.layers) and len(half.layers) > 1]
    return runs


@pytest.fixture(scope="module")
def uneven() -> HookGraph:
    """The last layer carries most, the first one little."""
    return planted(STIPPLE[:1], {0: STIPPLE, 15: STIPPLE}, louder=4.0)


@pytest.fixture(scope="module")
def both() -> HookGraph:
    """Two layers carry about half of the latent's way each, in one half of the network and in different quarters."""
    graph = HookGraph(tiny.exact(build("sd1", "both", 2)))
    assert len(smallest_window(truth_of(graph.pipe).layers).layers) == LAYERS // 2
    return graph


@pytest.fixture(scope="module")
def alone(both) -> list[float]:
    """What each of the two does alone, of all windows of one layer."""
    exact = run_built(both, LocoGen()).scores
    return [exact[layer] for layer in truth_of(both.pipe).layers]


class TestOneLayer:
    @pytest.mark.parametrize("layer", [0, 10])
    def test_it_is_found_with_two_runs_for_each_doubling_of_the_layers(self, layer):
        """And one of the whole window; beside the run as it is and the total effect."""
        graph = planted(STIPPLE[:2], {layer: STIPPLE})
        with tiny.counted(graph.denoiser) as calls:
            found = run(graph, Halving(), STIPPLE[:2])
        assert found.top(1) == [layer]
        assert found.scores[layer] == pytest.approx(1, abs=1e-3)
        assert np.abs(np.delete(found.scores, layer)).max() < 1e-3
        assert runs_for((layer,)) == 2 + 2 * math.log2(LAYERS) + 1
        assert sum(calls) == found.cost.nfe == 2 * STEPS * runs_for((layer,))


class TestTwoLayers:
    def test_both_are_followed_and_found(self, both, alone):
        layers = truth_of(both.pipe).layers
        found = run_built(both, Halving())
        assert set(found.top(2)) == set(layers)
        assert [found.scores[layer] for layer in layers] == pytest.approx(alone, abs=1e-3)
        assert found.cost.nfe == 2 * STEPS * runs_for(layers)

    def test_a_weaker_one_is_followed_from_the_share_of_the_stronger_that_is_asked_for(self, uneven):
        strong, weak = (run(uneven, LocoGen()).scores[layer] for layer in (15, 0))
        bar = weak / strong
        assert 0.1 < bar < 0.4
        followed, left = (run(uneven, Halving(follow=bar + step)) for step in (-0.05, 0.05))
        assert followed.scores[0] == pytest.approx(weak, abs=1e-3)
        assert followed.cost.nfe == STEPS * runs_for((0, 15))
        assert left.cost.nfe == STEPS * runs_for((15,))

    def test_layers_of_a_half_that_is_not_followed_share_its_effect(self, uneven):
        """The half's own comes from a window of eight layers."""
        found = run(uneven, Halving())
        window = run(uneven, LocoGen(window=8)).effects
        half = float(window.values[window.patches.index(Patch(tuple(range(8))))])
        assert half > 0.05
        assert found.scores[:8] == pytest.approx([half / 8] * 8, abs=1e-4)
        assert found.top(1) == [15]


class TestTogether:
    def test_layers_that_only_together_matter_stay_one_window(self, both):
        """Putting in one of two is not enough for an image that shows the concept."""
        truth = truth_of(both.pipe)
        window = smallest_window(truth.layers)
        found = run_built(both, Halving(direction="sufficiency"), Flipped(truth.shown_from))
        assert found.best == window
        assert [found.scores[layer] for layer in window.layers] == [1.0] * len(window.layers)
        assert {score for layer, score in enumerate(found.scores) if layer not in window.layers} == {0.0}
        named = " and ".join(f"layer {layer}" for layer in window.layers)
        assert found.verdict == f"all 2 prompts agree on {named} together"

    def test_either_is_found_where_taking_one_out_is_enough(self, both):
        truth = truth_of(both.pipe)
        found = run_built(both, Halving(), Flipped(1 - truth.shown_from))
        assert {layer for layer, score in enumerate(found.scores) if score} == set(truth.layers)

    @pytest.mark.parametrize(("step", "split"), [(-0.05, True), (0.05, False)])
    def test_a_window_is_split_where_one_half_does_enough_of_what_it_does(self, both, alone, step, split):
        """The bar is the stronger layer's share of what the two do together."""
        window = smallest_window(truth_of(both.pipe).layers)
        found = run_built(both, Halving(together=max(alone) + step))
        assert (found.best != window) == split
        assert split or [found.scores[layer] for layer in window.layers] == pytest.approx([1.0] * len(window.layers), abs=1e-3)


def test_where_nothing_passes_no_window_is_split():
    graph = planted(STIPPLE[:1], {})
    with pytest.warns(UserWarning, match="the total effect hardly moves LatentShare"):
        found = run(graph, Halving())
    assert set(found.scores) == {0.0}
    assert found.verdict.startswith("no layer stands out")


def test_the_pooled_text_is_tried_once_beside_the_layers():
    """It alone carries the concept here, so that the search ends with the whole window."""
    graph = HookGraph(tiny.exact(build("if-1", "pooled", 0)))
    found = run_built(graph, Halving())
    assert found.pooled_share[0] == pytest.approx(1, abs=1e-3)
    assert found.verdict.startswith("the pooled text carries 100%")
    assert torch.tensor(found.scores).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"follow": 0.0}, "follow=0.0 is no share of an effect; give more than 0 and at most 1"),
        ({"follow": 1.5}, "follow=1.5 is no share of an effect; give more than 0 and at most 1"),
        ({"together": -0.1}, "together=-0.1 is no share of an effect; give more than 0 and at most 1"),
        ({"together": 2.0}, "together=2.0 is no share of an effect; give more than 0 and at most 1"),
        ({"roles": ()}, "roles is empty; give key, value or both"),
        ({"roles": ("values",)}, r"role 'values' is unknown; choose one of key, value; did you mean 'value'\?"),
        ({"patch": "necesity"}, r"patch 'necesity' is unknown; choose one of necessity, sufficiency; did you mean 'necessity'\?"),
    ],
)
def test_an_impossible_option_is_refused(untyped, options, message):
    with pytest.raises(InvalidInput, match=message):
        Halving(**options)
