"""`rank`: which methods it takes, and what of its arguments each of them follows."""

import pytest
import torch

import neuroscope as ns
from neuroscope.attribution import Attribution
from tests.families import tiny
from tests.laws.members import members
from tests.localization.planted import SMALL, STIPPLE, concept_of

CONCEPT = concept_of(STIPPLE)
SHORT = ns.IntegratedGradients(steps=1, samples=1, fidelity=0)


@pytest.fixture(scope="module")
def graph() -> ns.HookGraph:
    return ns.HookGraph(tiny.sd1())


@pytest.mark.parametrize("kind", members(Attribution), ids=lambda each: each.__name__)
def test_a_response_method_records_keys_and_values_of_the_layers_itself(graph, kind):
    with tiny.counted(graph.denoiser) as calls:
        found = ns.rank(graph, CONCEPT, kind(), layers=[8, 9], quiet=True)
    assert calls == []
    sites = graph.sites.where(layer=(8, 9), role=("key", "value"))
    expected = ns.score(ns.record(graph, CONCEPT, sites, keep_samples=True, quiet=True), kind())
    assert found.sites == sites
    assert found.provenance == expected.provenance
    assert all(torch.equal(found.scores[path], each) for path, each in expected.scores.items())


def test_the_defaults_are_gradients_of_one_seed_and_all_pairs_by_the_latents_share(graph, monkeypatch):
    seen = []

    def look(_self, experiment):
        seen.append(experiment)
        raise KeyboardInterrupt

    for method in (ns.NeuronGradient, ns.NeuronAblation):
        monkeypatch.setattr(method, "__call__", look)
    every = concept_of([(f"{present} {number}", f"{absent} {number}") for number in range(4) for present, absent in STIPPLE])
    with pytest.raises(KeyboardInterrupt):
        ns.rank(graph, every, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        ns.rank(graph, every, ns.NeuronAblation(), **SMALL)
    assert [len(experiment.pairs) for experiment in seen] == [len(every.present), 8]
    assert {(experiment.seeds, experiment.layers, experiment.metric) for experiment in seen} == {((0,), None, ns.LatentShare())}


def test_layers_choose_the_sites(graph):
    one, both = (ns.rank(graph, CONCEPT, SHORT, layers=layers, pairs=1, quiet=True, **SMALL) for layers in (9, [8, 9]))
    assert one.sites == graph.sites.where(layer=9, role=("key", "value"))
    assert both.sites == graph.sites.where(layer=(8, 9), role=("key", "value"))


def test_a_ranking_says_what_the_concept_is_against(graph, tmp_path):
    concept = ns.Concept("stipple", CONCEPT.present, CONCEPT.absent, against=("plain", "hatch"))
    for method in (SHORT, ns.Welch()):
        options = {"pairs": 1, **SMALL} if method is SHORT else {}
        found = ns.rank(graph, concept, method, layers=9, quiet=True, **options)
        assert found.provenance.contrast == "against plain and hatch"
        assert repr(found).startswith("NeuronScores('stipple' against plain and hatch by ")
        assert ns.load(ns.save(found, tmp_path / "x.safetensors")).provenance == found.provenance


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"metric": ns.LatentShare()}, "metric"),
        ({"seeds": (0,)}, "seeds"),
        ({"output": "rows.jsonl"}, "output"),
        ({"pairs": 8}, "pairs"),
        ({"num_inference_steps": 2}, "num_inference_steps"),
        ({"seeds": [1], "pairs": 3}, "seeds and pairs"),
    ],
)
def test_what_a_response_method_would_ignore_is_refused(graph, options, names):
    ignored = rf"{names} would be ignored: Welch\(\) scores recorded responses and makes no image; leave (it|them) out, or give a causal"
    with pytest.raises(ns.InvalidInput, match=ignored):
        ns.rank(graph, CONCEPT, ns.Welch(), quiet=True, **options)


def test_a_method_of_layers_names_localize(graph, untyped):
    named = r"LocoGen\(window=2\) scores layers, and rank scores neurons; write ns.localize\(graph, concept, ns.LocoGen\(window=2\), metric"
    with pytest.raises(ns.InvalidInput, match=named):
        ns.rank(graph, CONCEPT, ns.LocoGen(window=2))


def test_localize_names_rank_for_a_response_method(graph, untyped):
    with pytest.raises(ns.InvalidInput, match=r"Welch\(\) scores neurons, and localize scores layers; write ns.rank\(graph, concept, ns.W"):
        ns.localize(graph, CONCEPT, ns.Welch(), ns.LatentShare())


def test_the_cost_of_a_stopped_run_of_the_same_layers_is_added(graph, tmp_path):
    options = {"output": tmp_path / "rows.jsonl", "pairs": 1, "quiet": True, **SMALL}
    first = ns.rank(graph, CONCEPT, SHORT, layers=9, **options)
    again = ns.rank(graph, CONCEPT, SHORT, layers=9, **options)
    other = ns.rank(graph, CONCEPT, SHORT, layers=8, **options)
    assert again.cost.nfe == 2 * first.cost.nfe
    assert other.cost.nfe == first.cost.nfe
