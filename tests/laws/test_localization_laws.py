"""What every method that localises layers must satisfy. A new method needs one line in EXAMPLES."""

import ast
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import scipy.stats
import torch

from neuroscope import (
    AttentionContribution,
    AttributionPatching,
    CausalTracing,
    Effects,
    HookGraph,
    ImageShare,
    InvalidInput,
    LatentShare,
    LayerScores,
    Localization,
    LocoGen,
    Racing,
    TeacherForced,
    load,
    localize,
    save,
)
from neuroscope.generation.teacher_forcing import TeacherForcing
from neuroscope.localization import plan_localization
from tests.families import tiny
from tests.laws.members import members
from tests.localization.planted import SMALL, STIPPLE, Corner, concept_of, planted

EXAMPLES: dict[type[Localization], list[Localization]] = {
    AttentionContribution: [AttentionContribution(steps=1, fidelity=3), AttentionContribution(against="other", fidelity=0)],
    AttributionPatching: [
        AttributionPatching(steps=1, samples=2, fidelity=3),
        AttributionPatching(steps=1, samples=1, recomputed=True, direction="sufficiency", fidelity=0),
    ],
    CausalTracing: [CausalTracing(), CausalTracing(component="text", noise=2.0)],
    LocoGen: [
        LocoGen(),
        LocoGen(window="grow", enough=0.6),
        LocoGen(window=5, parts=2, roles=("value",), direction="sufficiency"),
        LocoGen(search="auto"),
    ],
    Racing: [Racing(step_fraction=0.5)],
    TeacherForced: [TeacherForced(steps=1, fidelity=3), TeacherForced(steps=2, roles=("value",), direction="sufficiency", fidelity=0)],
}
#: Of the pipeline; no law depends on their number.
LAYERS = 7
SCREENS = (AttentionContribution, AttributionPatching, TeacherForced)


def is_search(method: Localization) -> bool:
    """Whether what it tries depends on what it finds, so that not every image is made with every layer."""
    return isinstance(method, Racing) or (isinstance(method, LocoGen) and method.search == "auto")


METHODS = [pytest.param(method, id=repr(method)) for methods in EXAMPLES.values() for method in methods]
PICTURED = [each for each in METHODS if not isinstance(each.values[0], SCREENS)]
EXHAUSTIVE = [each for each in PICTURED if not is_search(each.values[0])]
SHARE = LatentShare()
CONCEPT = concept_of(STIPPLE[:2])
FAST = SMALL | {"seeds": [3], "batch_size": 64, "quiet": True, "keep_images": 1}


def test_every_method_has_an_example():
    assert members(Localization) == sorted(EXAMPLES, key=lambda each: each.__name__)


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    """A pipeline on which the concept has an effect in every layer."""
    return planted(STIPPLE[:2], dict.fromkeys(range(LAYERS), STIPPLE), pipe=tiny.shallow())


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
        assert scores.effects.values.isfinite().all() or is_search(method)
        assert scores.scores == tuple(scores.effects.of_layers(scores.layers))
        assert {layer for patch in scores.effects.patches for layer in patch.layers} == set(scores.layers)
        assert np.abs(scores.scores).max() > 0.01

    def test_the_unchanged_run_is_zero_and_the_goal_is_one(self, method, found):
        assert found[repr(method)].effects.total.tolist() == [[1], [1]]

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
        for name in ("layers", "scores", "provenance", "names", "cost", "columns", "verdict", "best", "fidelity", "confidence"):
            assert getattr(again, name) == getattr(scores, name)
        assert torch.equal(again.sheet, scores.sheet) if isinstance(scores.sheet, torch.Tensor) else again.sheet is None
        assert isinstance(again.effects, Effects)
        assert torch.equal(again.effects.values, scores.effects.values)
        assert again.effects.to_header() == scores.effects.to_header()

    def test_the_same_seeds_give_the_same_scores_to_the_bit(self, method, graph, found):
        again = run(graph, method)
        assert again.scores == found[repr(method)].scores
        assert again.images == found[repr(method)].images

    def test_the_batch_size_does_not_matter(self, method, graph, found):
        again = run(graph, method, batch_size=7)
        torch.testing.assert_close(again.effects.values, found[repr(method)].effects.values, rtol=0, atol=1e-3, equal_nan=True)

    def test_rows_that_were_run_are_counted(self, method, graph, monkeypatch):
        """The denoiser's own, and of forced calls those that begin midway or run backwards."""
        kept = []
        made = TeacherForcing.__init__
        monkeypatch.setattr(TeacherForcing, "__init__", lambda self, *args: (made(self, *args), kept.append(self))[0])
        with tiny.counted(graph.denoiser) as calls:
            scores = run(graph, method, ImageShare())
        midway = sum(each.nfe for each in kept)
        assert scores.cost.nfe == pytest.approx(sum(calls) + midway)
        assert (midway > 0) == bool(kept)

    def test_its_plan_is_its_cost_and_computes_nothing(self, method, graph, found):
        asked = {name: value for name, value in FAST.items() if name not in ("quiet", "keep_images")}
        with tiny.counted(graph.denoiser.conv_in) as calls:
            plan = plan_localization(graph, CONCEPT, method, SHARE, **asked)
        assert calls == []
        assert "forward" not in vars(graph.denoiser)
        cost = found[repr(method)].cost
        assert cost.nfe <= plan.nfe if plan.is_bound else cost.nfe == pytest.approx(plan.nfe)
        assert plan.is_bound == (is_search(method) or "grow" in repr(method) or isinstance(method, SCREENS[:2]))

    def test_impossible_options_are_refused_before_any_picture(self, method, graph, untyped):
        with tiny.counted(graph.denoiser) as calls:
            with pytest.raises(InvalidInput, match="direction 'none' is unknown; choose one of|rows 'none' is unknown; choose one of"):
                run(graph, replace(method, **{"rows" if hasattr(method, "rows") else "direction": "none"}))
            with pytest.raises(InvalidInput, match="there are no seeds to localize with"):
                run(graph, method, seeds=[])
            with pytest.raises(InvalidInput, match="output_type is set for each image here"):
                run(graph, method, output_type="pil")
        assert calls == []

    def test_it_cannot_be_changed_once_made(self, method):
        with pytest.raises(FrozenInstanceError):
            method.rows = "all"

    def test_no_hook_is_left_by_it_nor_by_a_metric_that_fails(self, method, graph):
        class Broken:
            name = "broken"

            def __call__(self, images, prompts):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run(graph, replace(method, fidelity=3) if isinstance(method, SCREENS) else method, Broken())
        assert tiny.hooks(graph.pipe) == []


@pytest.mark.parametrize("method", PICTURED)
class TestEveryMethodThatMakesPictures:
    def test_the_direction_of_a_metric_does_not_matter(self, method, graph):
        there, back = (run(graph, method, Corner(sign), keep_images=0) for sign in (1.0, -1.0))
        assert there.scores == pytest.approx(back.scores)
        assert min(there.effects.total.mean(), back.effects.total.mean()) > 0

    def test_the_contact_sheet_has_a_column_for_every_run(self, method, found):
        scores = found[repr(method)]
        columns = ("source", *map(str, scores.effects.patches), "target")
        assert scores.columns == columns or (is_search(method) and (scores.columns[0], scores.columns[-1]) == ("source", "target"))
        assert [len(row) for row in scores.images.values()] == [len(scores.columns)]
        assert list(scores.images) == [CONCEPT.present[0]]


@pytest.mark.parametrize("method", EXHAUSTIVE)
class TestEveryMethodThatTriesAll:
    def test_prompts_do_not_notice_each_other(self, method, graph, found):
        whole = found[repr(method)].effects
        if isinstance(method, LocoGen) and method.window == "grow":
            method = replace(method, window=len(whole.patches[0].layers))  # how wide it grows depends on all of them
        alone = localize(graph, concept_of(STIPPLE[1:2]), method, LatentShare(), **FAST).effects
        chosen = [whole.patches.index(patch) for patch in alone.patches]
        torch.testing.assert_close(alone.values[:, 0, 0], whole.values[chosen, 1, 0], rtol=0, atol=1e-3)

    def test_a_finished_ledger_gives_the_same_scores_without_a_picture(self, method, graph, tmp_path):
        options = {"output": tmp_path / "rows.jsonl", "keep_images": 0}
        first = run(graph, method, **options)
        with tiny.counted(graph.denoiser) as calls:
            second = run(graph, method, **options)
        assert calls == []
        assert second.cost == first.cost
        assert second.scores == first.scores


@pytest.mark.parametrize("method", [each for each in METHODS if isinstance(each.values[0], SCREENS)])
class TestEveryScreen:
    def test_its_fidelity_is_the_rank_correlation_with_exact_effects(self, method, graph):
        """The exact effects come from LOCOGEN's windows on the first image, of the layers that the screen says it compared."""
        checked = replace(method, fidelity=LAYERS)
        scores = run(graph, checked)
        exact = run(graph, LocoGen(direction=method.direction, **({"roles": method.roles} if hasattr(method, "roles") else {})))
        expected = scipy.stats.spearmanr(scores.scores, exact.effects.values[:, 0, 0]).statistic
        assert scores.fidelity.count == LAYERS
        assert scores.fidelity.correlation == pytest.approx(expected, abs=1e-6)
        assert str(scores.fidelity) in scores.verdict

    def test_it_needs_no_picture_of_its_own(self, method, graph):
        with tiny.counted(graph.pipe.vae.decoder) as decoded:
            scores = run(graph, replace(method, fidelity=0))
        assert decoded == []
        assert (scores.images, scores.fidelity) == ({}, None)

    def test_its_grid_has_a_column_for_every_step_looked_at(self, method, graph, found):
        parts = list(found[repr(method)].grid().columns)
        assert parts == [f"step {step + 1} of 2" for step in ([1] if method.steps == 1 else [0, 1])]
