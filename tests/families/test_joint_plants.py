"""What is found in plants of models whose blocks rewrite the text."""

from functools import cache

import pytest

import neuroscope as ns
from benchmarks.neuron_truth import judged
from neuroscope.testbed import build, planted
from neuroscope.testbed.construction.plants import REWRITING

#: An effect that is rounding, as a share of the total.
NOTHING = 2e-3
SEEDS = range(4)

built = cache(build)


def localized(pipe: object, method: ns.Localization, seeds: int = 1, pairs: int | None = None) -> ns.LayerScores:
    plant = planted(pipe)
    options = {"pairs": pairs, "keep_images": 0, "quiet": True} | dict(plant.generation)
    return ns.localize(ns.HookGraph(pipe), plant.concept, method, ns.LatentShare(), range(seeds), **options)


def finds(scores: ns.LayerScores, pipe: object) -> bool:
    """Whether all of the effect is the planted layer's."""
    (layer,) = planted(pipe).layers
    others = [abs(float(score)) for number, score in zip(scores.layers, scores.scores, strict=True) if number != layer]
    return scores.top(1) == [layer] and float(max(scores.scores)) > 1 - NOTHING and max(others) < NOTHING


def test_an_edge_is_found_in_a_planted_block_of_flux():
    pipe = built("flux", "layer", 0)
    assert finds(localized(pipe, ns.LocoGen(), pairs=1), pipe)


@pytest.mark.slow
@pytest.mark.parametrize("plant", ["layer", "neurons", "decoy", "schedule"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", REWRITING)
def test_edges_are_found_in_every_plant_of_one_layer(family, seed, plant):
    pipe = build(family, plant, seed)
    assert finds(localized(pipe, ns.LocoGen(), pairs=2), pipe)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_an_edge_is_where_the_image_reads_and_a_stream_is_also_where_the_text_was_passed_on(seed):
    pipe = build("sd3", "relayed", seed)
    edge, stream = (localized(pipe, ns.LocoGen(definition=name), pairs=2) for name in ("edge", "stream"))
    assert finds(edge, pipe)
    credited = [layer for layer, score in zip(stream.layers, stream.scores, strict=True) if abs(float(score)) > 0.02]
    assert credited == [planted(pipe).relay, *planted(pipe).layers]
    assert min(float(stream.scores[layer]) for layer in credited) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("family", REWRITING)
def test_a_search_names_the_same_layer_for_a_part_of_the_nfe(family):
    pipe = built(family, "layer", 1)
    every, searched = (localized(pipe, method, seeds=4) for method in (ns.LocoGen(), ns.LocoGen(search="auto")))
    assert searched.top(1) == every.top(1) == list(planted(pipe).layers)
    assert searched.cost.nfe < every.cost.nfe / 3


@pytest.mark.slow
@pytest.mark.parametrize("search", ["windows", "auto"])
@pytest.mark.parametrize("family", REWRITING)
def test_nothing_is_found_where_nothing_is_planted(family, search):
    with pytest.warns(UserWarning, match="the total effect hardly moves"):
        found = localized(built(family, "nothing", 0), ns.LocoGen(search=search))
    assert found.verdict.startswith("no layer stands out")


@pytest.mark.slow
@pytest.mark.parametrize("family", REWRITING)
def test_the_pooled_text_is_named_where_it_carries(family):
    assert localized(built(family, "pooled", 0), ns.LocoGen(), pairs=2).verdict.startswith("the pooled text carries 100%")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [41, 42, 43])
@pytest.mark.parametrize("family", REWRITING)
def test_planted_neurons_come_first_for_under_200_nfe(family, seed):
    pipe = build(family, "neurons", seed)
    record, graph = planted(pipe), ns.HookGraph(pipe)
    found = ns.rank(graph, record.concept, ns.NeuronGradient(), quiet=True, **record.generation)
    assert found.cost.nfe <= 200
    found_of = judged(found, record.towards, record.neurons)
    assert found_of["precision"] >= 0.9  # of the neurons that push towards the other prompt
    assert found_of["precision_by_size"] >= 0.9  # of all that carry the concept
