"""An atlas holds for each concept what one call of `rank` or `localize` gives, and is one result."""

from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch

from neuroscope import (
    Atlas,
    Concept,
    Executor,
    HookGraph,
    InvalidInput,
    LatentShare,
    LayerScores,
    Local,
    LocoGen,
    NeuronAblation,
    NeuronGradient,
    Welch,
    atlas,
    load,
    localize,
    plots,
    rank,
    save,
)
from neuroscope.generation.executors import Workers
from tests.families import tiny
from tests.fuzz.examples import examples
from tests.localization.planted import EMBLEM, SMALL, STIPPLE, concept_of, planted

BOTH = [Concept("first", concept_of(STIPPLE[:2]).present, concept_of(STIPPLE[:2]).absent), concept_of(EMBLEM[:2])]
ONCE = SMALL | {"quiet": True}


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return planted(STIPPLE[:2], dict.fromkeys(range(7), STIPPLE), pipe=tiny.shallow())


class Here(Workers):
    """Workers in this process."""

    def run(self, work, tasks, done=0):
        return Local().run(work, tasks, done)


class Counted(Executor):
    """Counts how often its workers are asked for."""

    opened = 0

    def open(self, graph):
        self.opened += 1
        return nullcontext(Here())


def test_neurons_are_those_of_one_ranking_a_concept(graph):
    found = atlas(graph, BOTH, NeuronGradient(samples=4), layers=iter([3]), **ONCE)
    for concept in BOTH:
        alone = rank(graph, concept, NeuronGradient(samples=4), layers=[3], **ONCE)
        assert list(found[concept.name].scores) == list(alone.scores)
        for path, values in alone.scores.items():
            torch.testing.assert_close(found[concept.name].scores[path], values, rtol=0, atol=0)
    assert found.cost.nfe == sum(each.cost.nfe for each in found.values())


def test_layers_are_those_of_one_localization_a_concept_and_workers_serve_all(graph, tmp_path):
    executor = Counted()
    found = atlas(graph, BOTH, LocoGen(), seeds=iter([3]), executor=executor, output=tmp_path / "all.jsonl", **ONCE)
    assert executor.opened == 1
    for concept in BOTH:
        alone = localize(graph, concept, LocoGen(), LatentShare(), [3], output=tmp_path / "all.jsonl", **ONCE)
        assert found[concept.name].scores == alone.scores
        assert not found[concept.name].images
    assert found.to_frame().columns[:4].tolist() == ["concept", "layer", "name", "score"]


def test_responses_make_no_image(graph):
    found = atlas(graph, BOTH, Welch(), layers=3, quiet=True)
    assert found.cost is None
    assert set(found.to_frame()["layer"]) == {3}


@pytest.mark.parametrize("example", [each for each in examples() if isinstance(each, Atlas)], ids=repr)
class TestResult:
    def test_it_is_the_same_after_saving(self, example, tmp_path):
        again = load(save(example, tmp_path / "a.safetensors"), Atlas)
        assert list(again) == list(example)
        pd.testing.assert_frame_equal(again.to_frame(), example.to_frame())
        assert [repr(each) for each in again.values()] == [repr(each) for each in example.values()]

    def test_its_table_is_that_of_the_parts(self, example):
        table = example.to_frame()
        for name, each in example.items():
            part = table[table["concept"] == name].drop(columns="concept").reset_index(drop=True)
            pd.testing.assert_frame_equal(part, each.to_frame(), check_dtype=False)

    def test_its_plot_has_a_row_a_concept_with_its_largest_at_one(self, example):
        cells = np.abs(np.asarray(example.plot().collections[0].get_array()).reshape(len(example), -1))
        np.testing.assert_allclose(cells.max(axis=1), 1)


def test_layers_keep_their_order_in_the_plot():
    layers = (0, 2, 5)
    first, second = (LayerScores(layers, each) for each in ((0.0, 1.0, 4.0), (3.0, 1.5, 0.0)))
    ax = plots.concepts({"first": first, "second": second})
    assert [label.get_text() for label in ax.get_xticklabels()] == ["layer 0", "layer 2", "layer 5"]
    cells = dict(
        zip([label.get_text() for label in ax.get_yticklabels()], ax.collections[0].get_array().reshape(2, 3).tolist(), strict=True)
    )
    assert cells == {"first": [0, 0.25, 1], "second": [1, 0.5, 0]}


@pytest.mark.parametrize(
    ("concepts", "method", "options", "message"),
    [
        ([], NeuronGradient(), {}, "there are no concepts; give at least one"),
        (["stipple"], NeuronGradient(), {}, "one of concepts is the string 'stipple'"),
        ([BOTH[0], BOTH[0]], NeuronGradient(), {}, "'first' is the name of 2 concepts; give each a name of its own"),
        (BOTH, "welch", {}, "method is the string 'welch'"),
        (BOTH, LocoGen(), {"layers": 3}, r"layers would be ignored: LocoGen\(\) scores all layers"),
        (BOTH, NeuronAblation(), {"layers": 99}, "99"),
        (BOTH, Welch(), {"seeds": [0]}, "seeds would be ignored"),
        (BOTH, Welch(), {"executor": Counted()}, "executor would be ignored"),
        (BOTH, NeuronGradient(), {"executor": Counted()}, "executor would be ignored"),
        (BOTH, LocoGen(), {"num_inference_stepz": 3}, "num_inference_stepz"),
        (BOTH, LocoGen(), {"seeds": 3}, "seeds=3: write"),
        (BOTH, LocoGen(), {"executor": 2}, "executor is a int"),
    ],
)
def test_what_cannot_be_is_refused_before_an_image(graph, concepts, method, options, message, monkeypatch, untyped):
    monkeypatch.setattr(type(graph.denoiser), "forward", lambda *_, **__: pytest.fail("the denoiser ran"))
    with pytest.raises(InvalidInput, match=message):
        atlas(graph, concepts, method, **options)


def test_a_number_of_layers_to_plot_is_refused():
    given = {name: LayerScores((0,), (1.0,)) for name in "ab"}
    with pytest.raises(InvalidInput, match="top=1 would be ignored: all layers are shown"):
        plots.concepts(given, top=1)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "there are scores of no concept"),
        ({"a": 3}, "the scores of 'a'"),
        ({3: LayerScores((0,), (1.0,))}, "a concept's name"),
        ({"a": LayerScores((0,), (1.0,)), "b": LayerScores((1,), (1.0,))}, "the scores of 'b' are of other layers or sites"),
    ],
)
def test_scores_that_are_no_atlas_are_refused(scores, message, untyped):
    with pytest.raises(InvalidInput, match=message):
        Atlas(scores)


def test_a_concept_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="there is no concept 'stiple' in the atlas; did you mean 'stipple'"):
        Atlas({"stipple": LayerScores((0,), (1.0,))})["stiple"]
