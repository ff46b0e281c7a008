"""The search that must be cheap, and must never be wrong and sure."""

from functools import cache

import numpy as np
import pytest

from neuroscope import Flipped, HookGraph, InvalidInput, LatentShare, LayerScores, LocoGen, localize
from neuroscope.localization.search import screened_effects
from neuroscope.localization.search.settings import SETTINGS
from neuroscope.testbed import PLANTS, build, planted
from tests.families import tiny

SEEDS = range(8)
STEPS = 5
FAST = {"seeds": SEEDS, "pairs": None, "keep_images": 0, "quiet": True}


@cache
def model(family: str, plant: str, seed: int = 0) -> HookGraph:
    return HookGraph(tiny.exact(build(family, plant, seed)))


def search(graph: HookGraph, budget: float = 1 / 20, **options) -> LayerScores:
    truth = planted(graph.pipe)
    metric = LatentShare() if truth.shown_from is None else Flipped(1 - truth.shown_from)
    generation = truth.generation | ({} if truth.plant == "schedule" else {"num_inference_steps": STEPS})
    method = options.pop("method", LocoGen(search="auto", budget=budget))
    return localize(graph, truth.concept, method, metric, **(FAST | generation | options))


def sweep_rows(graph: HookGraph, images: int = 4 * len(SEEDS), steps: int = STEPS) -> int:
    """The rows of all windows of one layer, the two ends and the pooled text."""
    return (len(graph.sites.layers) + 2 + len(graph.sites.where(role="pooled"))) * images * steps


@pytest.mark.parametrize(("family", "plant"), [("sd1", "layer"), ("sd1", "schedule"), ("if-1", "neurons")])
def test_it_is_right_and_sure_for_a_twentieth_of_the_rows(family, plant):
    graph = model(family, plant)
    scores = search(graph)
    assert tuple(scores.top(1)) == planted(graph.pipe).layers
    assert scores.confidence.probability >= SETTINGS.target_confidence
    assert scores.cost.nfe <= sweep_rows(graph) / 20
    assert str(scores.confidence) in scores.verdict
    assert scores.confidence.total_images == 32


def test_where_nothing_is_planted_it_names_nothing():
    with pytest.warns(UserWarning, match="the total effect hardly moves LatentShare"):
        scores = search(model("sd1", "nothing"))
    assert not any(scores.scores)
    assert scores.confidence.measured_layers == ()
    assert "no layer stands out" in scores.verdict


def seen(shares: np.ndarray):
    """A screen that always sees these shares."""

    return lambda _roles, _forcing, steps, layers: [shares[list(layers)] for _ in steps]


class Noise:
    """A metric that says nothing of the concept: the same numbers for all images of a batch, in another order each time."""

    name = "noise"

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)

    def __call__(self, images, prompts) -> np.ndarray:
        return self._rng.normal(size=len(images))


def test_where_the_metric_does_not_see_the_concept_it_tries_everything_or_says_how_little_it_knows():
    graph = model("sd1", "layer")
    truth = planted(graph.pipe)
    options = FAST | truth.generation | {"num_inference_steps": 1, "seeds": range(2)}
    with pytest.warns(UserWarning, match="the total effect hardly moves"):
        every = localize(graph, truth.concept, LocoGen(search="auto"), Noise(), **options)
    assert every.confidence.measured_layers == graph.sites.layers
    with pytest.warns(UserWarning, match="the total effect hardly moves"):
        few = localize(graph, truth.concept, LocoGen(search="auto", budget=1 / 5), Noise(), **options)
    assert few.confidence.probability < SETTINGS.target_confidence
    assert few.cost.nfe < every.cost.nfe / 2


def test_where_either_of_two_layers_suffices_it_names_none_and_is_not_sure():
    scores = search(model("sd1", "redundant"))
    assert not any(scores.scores)
    assert scores.confidence.probability < SETTINGS.target_confidence


def test_where_the_layer_depends_on_the_prompt_it_falls_back_on_all_windows():
    graph = model("sd1", "prompt")
    options = {"seeds": range(2), "num_inference_steps": 1}
    scores = search(graph, budget=1, **options)
    every = search(graph, method=LocoGen(), **options)
    assert scores.confidence.measured_layers == graph.sites.layers
    assert (scores.confidence.measured_images, scores.confidence.total_images) == (8, 8)
    np.testing.assert_allclose(scores.scores, every.scores, atol=1e-4)
    assert "the place depends on the prompt" in scores.verdict
    assert set(scores.top(2)) == set(planted(graph.pipe).layers)


class TestScreensThatAreWrong:
    """A screen that names other layers costs rows, not the answer."""

    @pytest.fixture(params=["another", "flat"])
    def graph(self, request, monkeypatch) -> HookGraph:
        graph = model("sd1", "layer")
        (layer,) = planted(graph.pipe).layers
        shares = {"another": np.eye(16)[(layer + 5) % 16], "flat": np.zeros(16), "reverse": 1 - np.eye(16)[layer]}[request.param]
        monkeypatch.setattr(screened_effects, "forced_shares", seen(shares))
        return graph

    def test_with_all_rows_it_is_right(self, graph):
        scores = search(graph, budget=1, seeds=range(2))
        assert tuple(scores.top(1)) == planted(graph.pipe).layers
        assert planted(graph.pipe).layers[0] in scores.confidence.measured_layers

    @pytest.mark.parametrize("budget", [1 / 20, 1 / 8])
    def test_with_few_rows_it_is_right_or_unsure(self, graph, budget):
        scores = search(graph, budget)
        assert tuple(scores.top(1)) == planted(graph.pipe).layers or scores.confidence.probability < 0.8


@pytest.mark.parametrize("budget", [1 / 20, 1 / 6])
def test_its_budget_is_kept(budget):
    graph = model("sd1", "apart")
    assert search(graph, budget).cost.nfe <= budget * sweep_rows(graph)


def test_what_layers_did_together_is_shared_out_among_them(monkeypatch):
    """With a screen that sees nothing, each of the others has an equal part of what they do together; all parts add up to the whole."""
    graph = model("sd1", "apart")
    monkeypatch.setattr(screened_effects, "forced_shares", seen(np.zeros(16)))
    scores = search(graph, budget=1 / 40)
    rest = tuple(layer for layer in graph.sites.layers if layer not in scores.confidence.measured_layers)
    assert len(rest) > 10
    assert set(rest) & set(planted(graph.pipe).layers)
    parts = [scores.scores[layer] for layer in rest]
    assert parts == pytest.approx([parts[0]] * len(parts))
    assert parts[0] > 0.01
    assert sum(scores.scores) == pytest.approx(1, abs=0.05)


@pytest.fixture(scope="module")
def scores() -> LayerScores:
    return search(model("sd1", "apart"), 1 / 10)


class TestCloseLayers:
    """Two layers each have a half: the beginnings of further runs are looked at, as far as the budget goes."""

    def test_more_pictures_are_screened_than_made(self, scores):
        sure = scores.confidence
        assert sure.measured_images < sure.screened_images <= sure.total_images
        assert sure.probability <= 0.9
        assert f"on {sure.measured_images} of 32 images, and screened on {sure.screened_images})" in str(sure)
        assert scores.cost.nfe <= sweep_rows(model("sd1", "apart")) / 10

    def test_their_effects_are_near_those_of_all_pictures(self, scores):
        graph = model("sd1", "apart")
        every = search(graph, method=LocoGen())
        for layer in planted(graph.pipe).layers:
            effects = scores.effects.values[[each.layers for each in scores.effects.patches].index((layer,))]
            assert int((~effects.isnan()).sum()) == scores.confidence.screened_images
            assert scores.scores[layer] == pytest.approx(every.scores[layer], abs=0.1)

    def test_a_screen_that_misleads_is_not_asked_again(self, monkeypatch):
        rng = np.random.default_rng(0)
        graph = model("sd1", "apart")
        causal = planted(graph.pipe).layers

        def misleading(_roles, _forcing, steps, layers):
            return [np.isin(layers, causal) * rng.random(len(layers)) for _ in steps]

        monkeypatch.setattr(screened_effects, "forced_shares", misleading)
        assert search(graph, 1 / 10).confidence.screened_images == 0


def test_a_stopped_search_goes_on_from_its_file(tmp_path):
    graph = model("sd1", "apart")
    first = search(graph, 1 / 10, output=tmp_path / "rows.jsonl")
    again = search(graph, 1 / 10, output=tmp_path / "rows.jsonl")
    assert again.scores == first.scores
    assert again.confidence == first.confidence
    assert again.cost.nfe - first.cost.nfe < first.cost.nfe  # all parts are counted, and the second made less


def test_it_asks_what_the_windows_would_ask():
    """Values alone, in sufficiency: the same as all windows with these options."""
    graph = model("sd1", "layer")
    options = {"roles": ("value",), "direction": "sufficiency"}
    scores = search(graph, method=LocoGen(search="auto", budget=1, **options), seeds=range(1))
    every = search(graph, method=LocoGen(**options), seeds=range(1))
    (layer,) = planted(graph.pipe).layers
    assert scores.top(1) == every.top(1) == [layer]
    assert scores.scores[layer] == pytest.approx(every.scores[layer], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "auto", "budget": 0}, "budget=0 is no share of the exhaustive sweep's NFE; give more than 0 and at most 1"),
        ({"search": "auto", "budget": 1.5}, "budget=1.5 is no share of the exhaustive sweep's NFE"),
        ({"budget": 0.1}, "search='windows' has no budget; leave it out, or give search='auto'"),
        ({"seed": 3}, "search='windows' draws nothing at random; leave seed out, or give search='auto'"),
        ({"search": "auto", "seed": -1}, "seed=-1 is not allowed; give 0 or more"),
        ({"search": "auto", "window": 2}, "search='auto' takes layers one by one over the whole of `steps`; leave window and parts at 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        LocoGen(**options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the total effect hardly moves")
@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("plant", list(PLANTS))
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "if-1"])
def test_it_is_never_wrong_and_sure(family, plant, seed):
    try:
        graph = HookGraph(tiny.exact(build(family, plant, seed)))
    except InvalidInput:
        pytest.skip("the family cannot hold this plant")
    truth = planted(graph.pipe)
    for budget in (1 / 40, 1 / 20, 1 / 5):
        scores = search(graph, budget)
        named = scores.top(1)[0] if max(scores.scores) > 0.1 else None
        right = named in truth.layers or (named is None and (not truth.layers or plant == "redundant"))
        assert right or scores.confidence.probability < 0.9
