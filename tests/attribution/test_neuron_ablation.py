from dataclasses import replace

import numpy as np
import pytest
import torch

from neuroscope import HookGraph, InvalidInput, LocoGen, NeuronAblation, localize, rank
from neuroscope.testbed import Planted, build
from neuroscope.testbed import planted as truth_of
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, Corner, concept_of, planted

FAST = {"seeds": [3], "quiet": True}


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    """A few value neurons of one layer carry the concept."""
    return HookGraph(tiny.exact(build("sd1", "neurons", 0)))


@pytest.fixture(scope="module")
def truth(graph) -> Planted:
    return truth_of(graph.pipe)


def run(graph, truth, method, pairs=2, **options):
    return rank(graph, truth.concept, method, layers=truth.layers, pairs=pairs, **(FAST | truth.generation | options))


def latents(graph, prompt, seed, generation) -> torch.Tensor:
    made = graph.pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **generation)
    return made.images[0].double()


def test_a_score_is_the_share_that_the_neuron_moves_a_run_by_hand(graph, truth):
    """A plain hook puts one neuron's activations of the other prompt into the pipeline's own run."""
    found = run(graph, truth, NeuronAblation())
    ((path, chosen),) = truth.neurons.items()
    module, (present, absent) = graph.module(graph.sites.at([path])[0]), (truth.concept.present, truth.concept.absent)
    for index in chosen[:3]:
        shares = []
        for pair in (0, 2):  # of four, evenly spaced
            base, goal = (latents(graph, each[pair], 3, truth.generation) for each in (present, absent))
            other = module(graph.text.encode([absent[pair]])).detach()

            def put(_module, _args, output, index=index, other=other):
                changed = output.clone()
                changed[..., index] = other[..., index]
                return changed

            handle = module.register_forward_hook(put)
            moved = latents(graph, present[pair], 3, truth.generation)
            handle.remove()
            shares.append(float(((moved - base) * (goal - base)).sum() / ((goal - base) ** 2).sum()))
        assert float(found.scores[path][index]) == pytest.approx(np.mean(shares), abs=1e-4)


def test_neurons_that_carry_nothing_score_nothing_and_the_others_all(graph, truth):
    found = run(graph, truth, NeuronAblation(), pairs=1)
    ((path, chosen),) = truth.neurons.items()
    inside = torch.zeros(found.sites.at([path])[0].width, dtype=torch.bool)
    inside[list(chosen)] = True
    for site in found.sites:
        outside = found.scores[site.path][~inside] if site.path == path else found.scores[site.path]
        assert outside.abs().max() < 1e-4
    assert dict(replace(found, two_sided=True).top(len(chosen))) == {path: chosen}
    assert float(found.scores[path].sum()) == pytest.approx(1, abs=0.1)  # nearly additive, as all act in one layer


def test_the_neurons_of_a_group_share_its_effect(graph, truth):
    one, five = (run(graph, truth, NeuronAblation(roles="value", group=group), pairs=1) for group in (1, 5))
    ((path, scores),) = five.scores.items()
    assert scores.shape == one.scores[path].shape == (32,)
    parts = [scores[first : first + 5] for first in range(0, 32, 5)]
    assert all(part.std(correction=0) < 1e-12 for part in parts)
    sums = torch.tensor([one.scores[path][first : first + 5].sum() for first in range(0, 32, 5)])
    torch.testing.assert_close(torch.stack([part.sum() for part in parts]), sums, atol=0.05, rtol=0)
    assert five.cost.nfe == 2 * (2 + 7)  # steps, and base, goal and seven groups


def test_a_stopped_run_goes_on_and_shares_what_groups_of_one_have_done(graph, truth, tmp_path):
    ledger = tmp_path / "neurons.jsonl"
    first = run(graph, truth, NeuronAblation(roles="value"), pairs=1, output=ledger)
    again = run(graph, truth, NeuronAblation(), pairs=1, output=ledger)
    assert again.cost.nfe == 2 * (2 + 32)  # the keys alone are new
    ((path, scores),) = first.scores.items()
    assert torch.equal(again.scores[path], scores)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_all_neurons_of_a_site_have_together_what_its_layer_has_in_the_metrics_units(sign):
    graph = planted(STIPPLE[:1], {14: STIPPLE}, louder=30.0)
    options = {"metric": Corner(sign), "pairs": 1, **FAST, **SMALL}
    found = rank(graph, concept_of(STIPPLE[:1]), NeuronAblation(roles="value", group=99), layers=14, **options)
    layers = localize(graph, concept_of(STIPPLE[:1]), LocoGen(roles="value"), **options)
    ((_, scores),) = found.scores.items()
    assert float(scores.sum()) == pytest.approx(layers.scores[14])
    assert layers.scores[14] > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 0}, "group=0 is no number of neurons; give 1 or more"),
        ({"roles": ()}, "roles is empty; give key, value or both"),
        ({"roles": "query"}, "role 'query' is unknown; choose one of key, value"),
        ({"rows": "al"}, "rows 'al' is unknown; choose one of conditional, all"),
        ({"steps": (1.0, 0.0)}, r"steps=\(1.0, 0.0\) is not a part of the schedule"),
    ],
)
def test_an_impossible_option_is_refused(untyped, options, message):
    with pytest.raises(InvalidInput, match=message):
        NeuronAblation(**options)


def test_the_progress_bar_says_what_is_done(graph, truth, capsys):
    options = FAST | truth.generation | {"quiet": False}
    rank(graph, truth.concept, NeuronAblation(roles="value", group=99), layers=truth.layers, pairs=1, **options)
    said = capsys.readouterr().err
    assert f"ranking {truth.concept.name}" in said
    assert "localizing" not in said
