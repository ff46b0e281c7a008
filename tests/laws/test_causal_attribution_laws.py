"""What every causal method that ranks neurons must satisfy. A new method needs one line in EXAMPLES."""

import ast
import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from neuroscope import (
    CausalAttribution,
    HookGraph,
    IntegratedGradients,
    InvalidInput,
    LatentShare,
    NeuronAblation,
    NeuronGradient,
    NeuronScores,
    load,
    localize,
    rank,
    save,
)
from neuroscope.testbed import Planted, build
from neuroscope.testbed import planted as truth_of
from tests.families import tiny
from tests.laws.members import members

LAYER = 7  # of the plant, whose seed draws it
SHORT = {"roles": "value"}
EXAMPLES: dict[type[CausalAttribution], list[CausalAttribution]] = {
    NeuronAblation: [NeuronAblation(**SHORT), NeuronAblation(**SHORT, steps=(0.0, 0.5))],
    IntegratedGradients: [
        IntegratedGradients(**SHORT, steps=1, samples=2, fidelity=3),
        IntegratedGradients(**SHORT, steps=1, kind="gradient", fidelity=0),
    ],
    NeuronGradient: [NeuronGradient(**SHORT, samples=8)],
}
METHODS = [pytest.param(method, id=repr(method)) for methods in EXAMPLES.values() for method in methods]


def test_every_method_has_an_example():
    assert members(CausalAttribution) == sorted(EXAMPLES, key=lambda each: each.__name__)


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return HookGraph(tiny.exact(build("sd1", "neurons", 0)))


@pytest.fixture(scope="module")
def truth(graph) -> Planted:
    found = truth_of(graph.pipe)
    assert found.layers == (LAYER,)
    return found


@pytest.fixture(scope="module")
def found(graph) -> dict[str, NeuronScores]:
    """Each example's scores."""
    return {repr(method): run(graph, method) for methods in EXAMPLES.values() for method in methods}


def run(graph: HookGraph, method: CausalAttribution, metric=LatentShare(), **options) -> NeuronScores:
    truth = truth_of(graph.pipe)
    asked = {"metric": metric, "layers": LAYER, "seeds": [3], "pairs": 2, "quiet": True} | truth.generation | options
    return rank(graph, truth.concept, method, **asked)


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_every_neuron_of_the_asked_sites_has_a_score(self, method, graph, found):
        scores = found[repr(method)]
        assert scores.sites == graph.sites.where(layer=LAYER, role="value")
        for site in scores.sites:
            assert scores.scores[site.path].shape == (site.width,)
            assert scores.scores[site.path].dtype == torch.float64
            assert scores.scores[site.path].isfinite().all()

    def test_planted_neurons_come_first(self, method, truth, found):
        count = sum(map(len, truth.neurons.values()))
        assert dict(found[repr(method)].top(count)) == truth.neurons

    def test_higher_is_more_and_nothing_is_0(self, method, found):
        assert (found[repr(method)].two_sided, found[repr(method)].neutral) == (False, 0.0)

    def test_its_repr_is_stored_and_makes_it_again(self, method, graph, found):
        stored = found[repr(method)].provenance
        assert (stored.family, stored.model, stored.concept) == (graph.family.name, graph.model, "stipple")
        made_by, metric = stored.method.rsplit(", ", 1)
        assert metric == "LatentShare()"
        call = ast.parse(made_by, mode="eval").body
        again = type(method)(**{each.arg: ast.literal_eval(each.value) for each in call.keywords})
        assert [getattr(again, field.name) for field in fields(method)] == [getattr(method, field.name) for field in fields(method)]

    def test_saved_and_loaded_it_is_the_same(self, method, found, tmp_path):
        scores = found[repr(method)]
        again = load(save(scores, tmp_path / "neurons.safetensors"), NeuronScores)
        for name in ("sites", "neutral", "two_sided", "provenance", "fidelity", "cost"):
            assert getattr(again, name) == getattr(scores, name)
        assert all(torch.equal(again.scores[path], scores.scores[path]) for path in scores.sites.paths)

    def test_the_same_seeds_give_the_same_scores_to_the_bit(self, method, graph, found):
        again = run(graph, method)
        assert all(torch.equal(again.scores[path], each) for path, each in found[repr(method)].scores.items())

    @pytest.mark.parametrize("batch_size", [1, 5])
    def test_the_batch_size_does_not_matter(self, method, batch_size, graph, found):
        again = run(graph, method, batch_size=batch_size)
        for path, each in found[repr(method)].scores.items():
            torch.testing.assert_close(again.scores[path], each, rtol=0, atol=1e-4)

    def test_its_cost_is_not_less_than_the_rows_that_ran(self, method, graph):
        with tiny.counted(graph.denoiser) as calls:
            scores = run(graph, method)
        assert scores.cost.nfe >= sum(calls) > 0
        assert (scores.cost.nfe == sum(calls)) is isinstance(method, NeuronAblation)  # gradients run backwards, too

    def test_it_cannot_be_changed_once_made(self, method):
        with pytest.raises(FrozenInstanceError):
            method.roles = "key"

    def test_impossible_options_are_refused_before_any_picture(self, method, graph, untyped):
        with tiny.counted(graph.denoiser) as calls:
            with pytest.raises(InvalidInput, match="role 'none' is unknown; choose one of key, value"):
                run(graph, replace(method, roles="none"))
            with pytest.raises(InvalidInput, match="layer 16 is unknown; these sites have layers 0 to 15"):
                run(graph, method, layers=16)
            with pytest.raises(InvalidInput, match="there are no seeds to rank with"):
                run(graph, method, seeds=[])
            with pytest.raises(InvalidInput, match="output_type is set for each image here"):
                run(graph, method, output_type="pil")
        assert calls == []

    def test_localize_names_rank_instead(self, method, graph, truth, untyped):
        with pytest.raises(
            InvalidInput, match=rf"{re.escape(repr(method))} scores neurons, .*; write ns.rank\(graph, concept, ns.{type(method).__name__}"
        ):
            localize(graph, truth.concept, method, LatentShare())

    def test_no_hook_is_left_by_it_nor_by_a_run_that_fails(self, method, graph, monkeypatch):
        def fail(*_args, **_kwargs):
            raise ZeroDivisionError

        monkeypatch.setattr(graph.denoiser.conv_out, "forward", fail)
        with pytest.raises(ZeroDivisionError):
            run(graph, method)
        assert tiny.hooks(graph.pipe) == []
        assert not torch.is_inference_mode_enabled()
