"""What every localisation method must satisfy. A new method needs one line in EXAMPLES."""

import ast
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

from neuroscope import (
    CausalTracing,
    Effects,
    HookGraph,
    ImageShare,
    InvalidInput,
    LatentShare,
    LayerScores,
    Localization,
    LocoGen,
    load,
    localize,
    save,
)
from tests.families import tiny
from tests.laws.members import members
from tests.localization.planted import SMALL, STIPPLE, Corner, concept_of, planted

EXAMPLES: dict[type[Localization], list[Localization]] = {
    CausalTracing: [CausalTracing(), CausalTracing(component="text", noise=2.0)],
    LocoGen: [LocoGen(), LocoGen(window="grow", enough=0.6), LocoGen(window=13, parts=2, roles=("value",), probe="sufficiency")],
}
METHODS = [pytest.param(method, id=repr(method)) for methods in EXAMPLES.values() for method in methods]
SHARE = LatentShare()
CONCEPT = concept_of(STIPPLE[:2])
FAST = SMALL | {"seeds": [3], "batch_size": 64, "quiet": True, "keep_images": 1}


def test_every_method_has_an_example():
    assert members(Localization) == sorted(EXAMPLES, key=lambda each: each.__name__)


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    """A pipeline on which the concept has an effect in every layer."""
    return planted(STIPPLE[:2], dict.fromkeys(range(16), STIPPLE))


@pytest.fixture(scope="module")
def found(graph) -> dict[str, LayerScores]:
    """Each example's scores."""
    return {repr(method): run(graph, method) for methods in EXAMPLES.values() for method in methods}


def run(graph: HookGraph, method: Localization, metric=SHARE, **options) -> LayerScores:
    return localize(graph, CONCEPT, method, metric, **(FAST | options))


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_scores_are_means_of_effects_on_every_prompt_and_seed(self, method, found):
        scores = found[repr(method)]
        assert scores.effects.prompts == CONCEPT.present
        assert scores.effects.seeds == (3,)
        assert scores.effects.values.isfinite().all()
        assert scores.scores == tuple(scores.effects.of_layers(scores.layers))
        assert {layer for probe in scores.effects.probes for layer in probe.layers} == set(scores.layers)
        assert np.abs(scores.scores).max() > 0.01

    def test_the_unchanged_run_is_zero_and_the_goal_is_one(self, method, found):
        assert found[repr(method)].effects.full.tolist() == [[1], [1]]

    def test_its_repr_is_stored_and_makes_it_again(self, method, graph, found):
        stored = found[repr(method)].provenance
        assert (stored.family, stored.model, stored.concept) == (graph.family.name, graph.model, "stipple")
        made_by, metric = stored.method.rsplit(", ", 1)
        assert metric == "LatentShare()"
        call = ast.parse(made_by, mode="eval").body
        again = type(method)(**{each.arg: ast.literal_eval(each.value) for each in call.keywords})
        assert repr(again) == made_by
        for field in fields(method):
            if getattr(method, field.name) != "grow":  # what is stored is how wide it grew
                assert getattr(again, field.name) == getattr(method, field.name)

    def test_saved_and_loaded_it_is_the_same(self, method, found, tmp_path):
        scores = found[repr(method)]
        again = load(save(scores, tmp_path / "layers.safetensors"), LayerScores)
        for name in ("layers", "scores", "provenance", "names", "cost", "columns", "verdict", "best"):
            assert getattr(again, name) == getattr(scores, name)
        assert torch.equal(again.sheet, scores.sheet)
        assert isinstance(again.effects, Effects)
        assert torch.equal(again.effects.values, scores.effects.values)
        assert again.effects.to_header() == scores.effects.to_header()

    def test_the_same_seeds_give_the_same_scores_to_the_bit(self, method, graph, found):
        again = run(graph, method)
        assert again.scores == found[repr(method)].scores
        assert torch.equal(again.sheet, found[repr(method)].sheet)

    def test_the_batch_size_does_not_matter(self, method, graph, found):
        again = run(graph, method, batch_size=7)
        torch.testing.assert_close(again.effects.values, found[repr(method)].effects.values, rtol=0, atol=1e-3)

    def test_prompts_do_not_notice_each_other(self, method, graph, found):
        whole = found[repr(method)].effects
        if isinstance(method, LocoGen) and method.window == "grow":
            method = replace(method, window=len(whole.probes[0].layers))  # how wide it grows depends on all of them
        alone = localize(graph, concept_of(STIPPLE[1:2]), method, LatentShare(), **FAST).effects
        chosen = [whole.probes.index(probe) for probe in alone.probes]
        torch.testing.assert_close(alone.values[:, 0, 0], whole.values[chosen, 1, 0], rtol=0, atol=1e-3)

    def test_a_finished_ledger_gives_the_same_scores_without_a_picture(self, method, graph, tmp_path):
        options = {"output": tmp_path / "rows.jsonl", "keep_images": 0}
        first = run(graph, method, **options)
        with tiny.counted(graph.denoiser) as calls:
            second = run(graph, method, **options)
        assert calls == []
        assert second.cost.rows == 0
        assert second.scores == first.scores

    def test_the_direction_of_a_metric_does_not_matter(self, method, graph):
        there, back = (run(graph, method, Corner(sign), keep_images=0) for sign in (1.0, -1.0))
        assert there.scores == pytest.approx(back.scores)
        assert min(there.effects.full.mean(), back.effects.full.mean()) > 0

    def test_the_contact_sheet_has_a_column_for_every_run(self, method, found):
        scores = found[repr(method)]
        assert scores.columns == ("base", *map(str, scores.effects.probes), "goal")
        assert [len(row) for row in scores.images.values()] == [len(scores.columns)]
        assert list(scores.images) == [CONCEPT.present[0]]

    def test_rows_that_were_run_are_counted(self, method, graph):
        with tiny.counted(graph.denoiser) as calls:
            scores = run(graph, method, ImageShare())
        assert scores.cost.rows == sum(calls) > 0

    def test_it_cannot_be_changed_once_made(self, method):
        with pytest.raises(FrozenInstanceError):
            method.rows = "all"

    def test_impossible_options_are_refused_before_any_picture(self, method, graph, untyped):
        with tiny.counted(graph.denoiser) as calls:
            with pytest.raises(InvalidInput, match="rows 'none' is unknown; choose one of"):
                run(graph, replace(method, rows="none"))
            with pytest.raises(InvalidInput, match="there are no seeds to localize with"):
                run(graph, method, seeds=[])
            with pytest.raises(InvalidInput, match="output_type is set for each picture here"):
                run(graph, method, output_type="pil")
        assert calls == []

    def test_no_hook_is_left_by_it_nor_by_a_metric_that_fails(self, method, graph):
        class Broken:
            name = "broken"

            def __call__(self, images, prompts):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run(graph, method, Broken())
        assert tiny.hooks(graph.pipe) == []
