from collections.abc import Sequence

import numpy as np
import pytest
import torch

from neuroscope import AttentionContribution, Concept, HookGraph, InvalidInput, LatentShare, LayerScores, LocoGen, TeacherForced, localize
from neuroscope.pipeline.families import has_latents
from neuroscope.testbed import build
from neuroscope.testbed import planted as truth_of
from tests.families import tiny
from tests.localization.by_hand import Prediction
from tests.localization.planted import SMALL, STIPPLE, concept_of, planted

PAIR = STIPPLE[0]
SEED = 3
GENERATION = {"sd1": SMALL, "if-1": {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 8, "width": 8, "clean_caption": False}}
SAYING, DEAF = 14, 2


def generation_of(graph: HookGraph) -> dict:
    return GENERATION["sd1" if has_latents(graph.pipe) else "if-1"]


def run(graph: HookGraph, pairs=(PAIR,), name: str = "stipple", **options) -> LayerScores:
    method = AttentionContribution(**({"steps": 1, "fidelity": 0} | options))
    return localize(graph, concept_of(pairs, name), method, LatentShare(), [SEED], quiet=True, **generation_of(graph))


def positions(graph: HookGraph, prompt: str, words: str) -> list[int]:
    """Where the tokens of words stand in a prompt, by comparing numbers of tokens."""
    tokenizer = graph.pipe.tokenizer
    ids, wanted = tokenizer(prompt).input_ids, tokenizer(words, add_special_tokens=False).input_ids
    (first,) = [index for index in range(len(ids)) if ids[index : index + len(wanted)] == wanted]
    return list(range(first, first + len(wanted)))


def shares(said: Sequence[torch.Tensor]) -> list[float]:
    """Of what layers put out at each place [place, channel], the norms, averaged over places; as shares of all."""
    norms = np.array([float(each.norm(dim=1).mean()) for each in said])
    return (norms / norms.sum()).tolist()


def by_hand(graph: HookGraph, tokens: Sequence[int], pair=PAIR) -> list[float]:
    """The second step of two."""
    hand = Prediction(graph.pipe, pair, SEED, 1, generation_of(graph))
    return shares([hand.attention(layer).said(tokens) for layer in range(len(hand.layers))])


@pytest.fixture(scope="module", params=["sd1", "if-1"])
def model(request) -> HookGraph:
    return HookGraph(tiny.PIPELINES[request.param]())


@pytest.fixture(scope="module")
def overheard() -> HookGraph:
    """Two layers say what the concept is, but nothing of what the transformer around one of them does reaches the image."""
    graph = planted(STIPPLE[:2], {SAYING: STIPPLE, DEAF: STIPPLE})
    (site,) = graph.sites.where(layer=DEAF, role="key")
    graph.denoiser.get_submodule(site.module.partition(".transformer_blocks")[0]).proj_out.weight.data.zero_()
    return graph


class TestAgainstNothing:
    def test_scores_are_norms_of_weights_times_values_times_the_projection(self, model):
        expected = by_hand(model, positions(model, PAIR[0], "stipple"))
        assert run(model).scores == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize(
        ("tokens", "words"),
        [
            (("subject", "last subject"), "white square"),
            (("last subject",), "square"),
            (("subject",), "white"),
            (("after",), "in the style of stipple"),
        ],
    )
    def test_the_concepts_tokens_are_those_asked_for(self, graph, tokens, words):
        expected = by_hand(graph, positions(graph, PAIR[0], words))
        assert run(graph, name="white square", tokens=tokens).scores == pytest.approx(expected, rel=1e-3)

    def test_for_sufficiency_the_other_prompt_is_looked_at(self, graph):
        expected = by_hand(graph, positions(graph, PAIR[1], "plain"), PAIR[::-1])
        assert run(graph, name="plain", direction="sufficiency").scores == pytest.approx(expected, rel=1e-3)


class TestAgainstTheOtherPrompt:
    def test_scores_are_how_far_the_output_moves_by_the_other_keys_and_values(self, model):
        """At all tokens; averaged over both steps."""
        found = []
        for step in (0, 1):
            hand = Prediction(model.pipe, PAIR, SEED, step, generation_of(model))
            layers = range(len(hand.layers))
            found.append(shares([hand.attention(layer, other=True).said() - hand.attention(layer).said() for layer in layers]))
        assert run(model, against="other", steps=2).scores == pytest.approx(np.mean(found, axis=0).tolist(), rel=1e-3)

    def test_layers_that_cannot_tell_the_prompts_apart_say_nothing(self, overheard):
        found = run(overheard, STIPPLE[:2], against="other")
        assert {layer for layer, score in zip(found.layers, found.scores, strict=True) if score} == {SAYING, DEAF}

    def test_rounding_errors_are_no_contribution(self):
        """Of a model that hears no difference at all."""
        found = run(planted(STIPPLE[:1], {}), against="other")
        assert set(found.scores) == {0.0}
        assert found.verdict.startswith("no layer stands out")


class TestSayingIsNotBeingHeard:
    """What a layer says is measured where it is said: see the class's docstring."""

    @pytest.mark.parametrize("against", ["nothing", "other"])
    def test_a_layer_to_which_nothing_listens_is_named_too(self, overheard, against):
        found = run(overheard, STIPPLE[:2], against=against)
        assert set(found.top(2)) == {SAYING, DEAF}
        assert found.scores[DEAF] > 0.5 * found.scores[SAYING]

    @pytest.mark.parametrize("method", [TeacherForced(steps=1, fidelity=0), LocoGen()])
    def test_methods_that_look_at_what_comes_of_it_do_not_name_it(self, overheard, method):
        found = localize(overheard, concept_of(STIPPLE[:2]), method, LatentShare(), [SEED], quiet=True, **SMALL)
        assert found.scores[SAYING] == pytest.approx(1, abs=1e-3)
        assert abs(found.scores[DEAF]) < 1e-4

    @pytest.mark.parametrize("against", ["nothing", "other"])
    def test_neurons_that_the_layers_own_projection_leaves_out_say_nothing(self, decoyed, against):
        """A decoy's value neurons read the concept, but the weights that would read them are zero."""
        truth = truth_of(decoyed.pipe)
        method = AttentionContribution(against=against, steps=1, fidelity=0)
        found = localize(decoyed, truth.concept, method, LatentShare(), [0], pairs=1, quiet=True, **truth.generation)
        assert found.top(1) == list(truth.layers)
        assert found.scores[truth.decoy] < 0.01


@pytest.fixture(scope="module")
def decoyed() -> HookGraph:
    return HookGraph(tiny.exact(build("sd1", "decoy", 0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": "others"}, r"against 'others' is unknown; choose one of nothing, other; did you mean 'other'\?"),
        (
            {"tokens": ("subjects",)},
            r"kind of token 'subjects' is unknown; choose one of start, before, subject, .*did you mean 'subject'\?",
        ),
        ({"tokens": ()}, "tokens is empty, so nothing is the concept's; give some of start, before, subject, last subject, after"),
        ({"direction": "necesity"}, r"direction 'necesity' is unknown; choose one of necessity, sufficiency; did you mean 'necessity'\?"),
        ({"steps": 0}, "steps=0 looks at no step of the schedule; give 1 or more"),
        ({"fidelity": 1}, "fidelity=1 is too few layers for a rank correlation; give at least 3, or 0 to leave it out"),
    ],
)
def test_an_impossible_option_is_refused(untyped, options, message):
    with pytest.raises(InvalidInput, match=message):
        AttentionContribution(**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "emblem",
            {},
            "square in the style of stipple' has no subject or last subject token of 'emblem'; choose other tokens, or against='o",
        ),
        (
            "stipple",
            {"tokens": ("subject",)},
            "in the style of stipple' has no subject token of 'stipple'; choose other tokens, or against=",
        ),
        (
            "stipple",
            {"direction": "sufficiency"},
            "in the style of plain' has no subject or last subject token of 'stipple'; choose other tok",
        ),
    ],
)
def test_a_prompt_without_the_tokens_is_refused_before_any_picture(graph, name, options, message):
    with tiny.counted(graph.denoiser) as calls, pytest.raises(InvalidInput, match=message):
        run(graph, name=name, **options)
    assert calls == []


def test_a_concept_that_no_prompt_names_can_be_measured_against_the_other_prompt(graph):
    nameless = Concept("dots", [PAIR[0]], [PAIR[1]])
    found = localize(
        graph, nameless, AttentionContribution(against="other", steps=1, fidelity=0), LatentShare(), [SEED], quiet=True, **SMALL
    )
    assert found.scores == run(graph, against="other").scores
