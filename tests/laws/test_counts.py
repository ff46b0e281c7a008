"""A count of one has its noun in the singular, in what each object says of itself."""

import re

import pytest

import neuroscope as ns
from neuroscope.core.errors import counted
from neuroscope.core.quality import Plan

NOUNS = "call|image|layer|neuron|pair|prompt|seed|site|test prompt"
SLIP = re.compile(rf"(?<![\d.,])1 ({NOUNS})s\b")
SITES = ns.Sites([ns.Site("unet.0.key", 0, "mid", "key", 1, True)])
SAID = {
    "sites": SITES,
    "concept": ns.Concept("x", ["a red star"], ["a star"], ["a red sun"]),
    "neurons": ns.Neurons({"unet.0.key": [0]}, {"unet.0.key": 1}),
    "mask": ns.NeuronMask(ns.Neurons({"unet.0.key": [0]}, {"unet.0.key": 1})).summary().verdict,
    "layers": ns.LayerScores((0,), (1.0,)),
    "plan": Plan(1, 1),
}


@pytest.mark.parametrize("name", SAID)
def test_one_is_singular(name):
    assert re.search(rf"\b1 ({NOUNS})\b", str(SAID[name]))
    assert not SLIP.search(str(SAID[name]))


def test_a_count_has_its_noun():
    assert [counted(count, "site") for count in (0, 1, 2, 1000)] == ["0 sites", "1 site", "2 sites", "1,000 sites"]
