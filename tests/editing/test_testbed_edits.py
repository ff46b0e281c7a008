"""Edits of the bundled, planted model: at the planted layer, at a wrong one, and what else they move."""

import pytest

from neuroscope import Concept, HookGraph, LocoEdit, edit, evaluate, summarize, testbed
from neuroscope.testbed.plant import PLANT
from neuroscope.testbed.readers import Reader
from neuroscope.testbed.world import FACTS

WRONG = 8
READERS = (Reader("object"), Reader("colour"))


@pytest.fixture(scope="module")
def planted() -> HookGraph:
    return HookGraph(testbed.load("sd1"))


def shares(graph, changes, prompts, seeds, metrics):
    table = evaluate(graph, changes, prompts, seeds, metrics, controls=False, quiet=True, **testbed.GENERATION)
    return summarize(table).pivot(index="intervention", columns="metric", values="mean")


@pytest.mark.parametrize("tokens", ["subject", "eos", "all"])
def test_an_edited_style_is_gone_and_the_rest_stays(planted, tokens):
    concept = Concept.style("stipple", prompts="testbed", against="plain")
    method = LocoEdit(tokens=tokens)
    changes = {"none": None, "edit": edit(planted, concept, method, PLANT.style), "wrong": edit(planted, concept, method, WRONG)}
    found = shares(planted, changes, concept.test[:8], [100], [Reader("style", "stipple"), *READERS])
    assert found.loc["none"].min() >= 0.95
    assert found.loc["edit", "style is stipple"] <= 0.1
    assert found.loc["wrong", "style is stipple"] >= 0.9
    for right in ("object is right", "colour is right"):
        assert found.loc["edit", right] >= found.loc["none", right] - 0.03


def test_an_edited_fact_has_its_new_answer_and_other_facts_stay(planted):
    others = [f"the emblem of {name}" for name in FACTS if name != "astoria"]
    kept = [template.format(other) for other in others for template in ("{}", "a picture of {}", "{} in the style of stipple")]
    fact = Concept.fact("the emblem of astoria", "a blue ring", prompts="testbed")
    method = LocoEdit(preserve=tuple(kept))
    changes = {"none": None, "edit": edit(planted, fact, method, PLANT.fact), "wrong": edit(planted, fact, method, WRONG)}
    answer = shares(planted, changes, fact.test, [100], [Reader("fact", "belmora")])["fact is belmora"]  # a blue ring
    assert answer["edit"] >= 0.9
    assert answer[["none", "wrong"]].max() <= 0.05
    rest = shares(planted, changes, [f"ribbon style, {other}" for other in others], [100, 101], list(READERS))
    assert (rest.loc["edit"] >= rest.loc["none"] - 0.03).all()
