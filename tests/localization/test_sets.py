"""Smallest sets of layers, on pipelines whose carrying layers are known."""

import pytest

from neuroscope import Flipped, HookGraph, InvalidInput, LatentShare, LocoGen, localize
from neuroscope.testbed import build, planted
from tests.families import tiny

SETS = LocoGen(search="sets", enough=0.95)


def found(plant: str, method: LocoGen):
    pipe = tiny.exact(build("sd1", plant, seed=0))
    truth = planted(pipe)
    metric = LatentShare() if truth.shown_from is None else Flipped(1 - truth.shown_from)
    scores = localize(HookGraph(pipe), truth.concept, method, metric, [0], pairs=2, keep_images=0, quiet=True, **truth.generation)
    return scores, truth


def test_layers_that_are_not_adjacent_are_one_set():
    scores, truth = found("apart", SETS)
    assert scores.best.layers == truth.layers
    assert scores.verdict == "all 2 prompts agree on {} together".format(" and ".join(f"layer {layer}" for layer in truth.layers))


def test_layers_that_stand_in_for_each_other_are_found_where_windows_see_nothing():
    scores, truth = found("redundant", SETS)
    assert set(scores.top(2)) == set(truth.layers)
    windows, _ = found("redundant", LocoGen())
    assert max(windows.scores) == 0


def test_where_nothing_carries_it_there_is_no_set():
    with pytest.warns(UserWarning, match="the total effect hardly moves"):
        scores, _ = found("nothing", SETS)
    assert scores.verdict.startswith("no layer stands out")


def test_sets_have_no_windows_and_no_parts():
    with pytest.raises(InvalidInput, match="search='sets' takes layers one by one over the whole of `steps`; leave window and parts at 1"):
        LocoGen(search="sets", window=2)


@pytest.mark.parametrize("bar", [0.0, 1.0])
def test_a_bar_lies_between_nothing_and_all(bar):
    with pytest.raises(InvalidInput, match=f"from_share={bar} is no bar; give a share between 0 and 1, such as 0.5"):
        Flipped(bar)
