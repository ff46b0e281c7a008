"""What every attribution method must satisfy. A new method needs one line in EXAMPLES."""

from dataclasses import replace

import pytest
import torch

from neuroscope import (
    Attribution,
    Auroc,
    Concept,
    HookGraph,
    InvalidInput,
    MeanDifference,
    Moments,
    Recording,
    WeightedNorm,
    Welch,
    record,
    score,
)
from neuroscope.attribution.recording import ARMS
from tests.families import tiny
from tests.laws.members import members
from tests.laws.recordings import random_recording, recording_of

EXAMPLES: dict[type[Attribution], list[Attribution]] = {
    Auroc: [Auroc()],
    MeanDifference: [MeanDifference(), MeanDifference(weighted=True)],
    WeightedNorm: [WeightedNorm()],
    Welch: [Welch()],
}
METHODS = [pytest.param(method, id=repr(method)) for methods in EXAMPLES.values() for method in methods]
LAYER, PLANTED = 9, [3, 17, 20, 29]


def test_every_method_has_an_example():
    assert members(Attribution) == sorted(EXAMPLES, key=lambda each: each.__name__)


@pytest.fixture(scope="module")
def concept() -> Concept:
    things = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "star", "ring", "cross")]
    return Concept(
        "stipple", [f"{thing} in the style of stipple" for thing in things], [f"{thing} in the style of plain" for thing in things]
    )


@pytest.fixture(scope="module")
def planted(concept) -> Recording:
    """A real pipeline in which four value neurons of one layer, and no other key or value, tell the arms apart."""
    pipe = tiny.sd1()
    graph = HookGraph(pipe)
    present, absent = (graph.text.encode(prompts)[:, -1].double() for prompts in (concept.present, concept.absent))
    blind = torch.linalg.qr((present - absent).T)[0]
    away = torch.linalg.qr(absent.T)[0]
    seeing = (present - present @ away @ away.T).mean(dim=0)  # 0 for every absent prompt
    with torch.no_grad():
        for site in graph.sites.where(text_only=True):
            weight = graph.module(site).weight
            weight.copy_(weight.double() - weight.double() @ blind @ blind.T)
            if (site.layer, site.role) == (LAYER, "value"):
                weight[PLANTED] = (seeing * torch.arange(1, len(PLANTED) + 1)[:, None] / seeing.norm()).to(weight.dtype)
    return record(graph, concept, token="last", keep_samples=True, quiet=True)


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_planted_neurons_come_first_and_their_layer_too(self, method, planted):
        scores = score(planted, method)
        (path,) = planted.sites.where(layer=LAYER, role="value").paths
        assert dict(scores.top(len(PLANTED))) == {path: tuple(PLANTED)}
        assert dict(scores.top(1))[path][0] in PLANTED
        assert scores.by_layer().top(1) == [LAYER]

    def test_permuted_neurons_have_permuted_scores(self, method):
        recording = random_recording()
        order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
        present, absent = (recording.samples[arm]["unet.a"] for arm in ARMS)
        plain = recording_of({"unet.a": present}, {"unet.a": absent}, recording.outgoing)
        moved = recording_of({"unet.a": present[:, order]}, {"unet.a": absent[:, order]}, {"unet.a": recording.outgoing["unet.a"][order]})
        torch.testing.assert_close(score(moved, method).scores["unet.a"], score(plain, method).scores["unet.a"][order])

    def test_exchanged_arms_mirror_the_scores_where_that_is_declared(self, method):
        recording = random_recording()
        exchanged = replace(
            recording,
            moments={"present": recording.moments["absent"], "absent": recording.moments["present"]},
            samples={"present": recording.samples["absent"], "absent": recording.samples["present"]},
        )
        there, back = (score(each, method).scores["unet.a"] - method.neutral for each in (recording, exchanged))
        assert float(there.abs().max()) > 0.1
        assert torch.allclose(back, -there, atol=1e-12) is method.antisymmetric

    def test_a_stronger_response_to_the_concept_is_a_higher_score(self, method):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64)
        effect = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], dtype=torch.float64)
        scores = score(recording_of({"unet.a": 5 + noise[0] + effect}, {"unet.a": 5 + noise[1]}), method).scores["unet.a"]
        assert scores.argsort().tolist() == list(range(6))
        assert scores[-1] > method.neutral

    def test_scores_are_float64_and_finite(self, method, planted):
        for scores in (score(random_recording(), method), score(planted, method)):
            assert all(each.dtype == torch.float64 and each.isfinite().all() for each in scores.scores.values())

    @pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 0.1, 1e4])
    def test_a_neuron_that_never_changes_is_neutral(self, method, value):
        constant = {"unet.a": torch.full((7, 3), value, dtype=torch.float64)}, {"unet.a": torch.full((3, 3), value, dtype=torch.float64)}
        scores = score(recording_of(*constant), method)
        torch.testing.assert_close(scores.scores["unet.a"], torch.full((3,), method.neutral, dtype=torch.float64))
        if scores.p_values:
            assert scores.p_values["unet.a"].tolist() == [1.0, 1.0, 1.0]

    def test_the_method_is_kept_as_the_scores_provenance(self, method):
        scores = score(random_recording(), method)
        assert scores.provenance.method == repr(method)
        assert (scores.provenance.model, scores.provenance.concept) == ("model", "concept")
        assert (scores.neutral, scores.two_sided) == (method.neutral, method.two_sided)

    def test_methods_compare_by_their_parameters(self, method):
        assert eval(repr(method)) == method
        assert hash(eval(repr(method))) == hash(method)

    def test_one_prompt_in_an_arm_is_refused(self, method):
        single = random_recording(prompts=(1, 5))
        with pytest.raises(InvalidInput, match=r"needs at least two prompts in each arm, not 1 present and 5 absent"):
            score(single, method)


@pytest.mark.parametrize("method", [each for each in METHODS if each.values[0].needs_samples])
def test_samples_are_asked_for_where_they_are_needed(method):
    with pytest.raises(InvalidInput, match="compares single observations; record with keep_samples=True"):
        score(replace(random_recording(), samples={}), method)


@pytest.mark.parametrize("method", [each for each in METHODS if not each.values[0].needs_samples])
def test_a_recording_by_step_scores_the_mean_over_steps(method):
    first = random_recording(0)
    second = replace(random_recording(1), outgoing=first.outgoing)
    both = replace(first, moments={arm: {"unet.a": stacked(*(each.moments[arm]["unet.a"] for each in (first, second)))} for arm in ARMS})
    found = score(both, method)
    expected = (score(first, method).scores["unet.a"] + score(second, method).scores["unet.a"]) / 2
    torch.testing.assert_close(found.scores["unet.a"], expected)
    assert found.p_values == {}


@pytest.mark.parametrize("method", [each for each in METHODS if score(random_recording(), each.values[0]).p_values])
def test_chances_lie_between_0_and_1_and_are_smaller_for_stronger_neurons(method):
    scores = score(random_recording(), method)
    chances, strength = scores.p_values["unet.a"], scores.strength("unet.a")
    assert ((chances >= 0) & (chances <= 1)).all()
    assert chances[strength.argmax()] < chances[strength.argmin()]


def stacked(first: Moments, second: Moments) -> Moments:
    """The moments of two steps."""
    return replace(first, mean=torch.stack([first.mean, second.mean]), deviation=torch.stack([first.deviation, second.deviation]))
