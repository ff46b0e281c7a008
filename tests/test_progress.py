"""Work that takes long shows how far it is, and with `quiet` nothing."""

import re
import time
from functools import partial

import pytest

import neuroscope as ns
from tests.families import tiny

STEPS = {"num_inference_steps": 2, "height": 64, "width": 64}


@pytest.fixture
def works(graph, concept, monkeypatch):
    """By the bar's name, work that shows it, and how many of which unit there are."""
    of = ns.LocoEdit._map
    monkeypatch.setattr(ns.LocoEdit, "_map", lambda *given: time.sleep(1.1) or of(*given))  # a bar that is there after a second
    screen = partial(ns.localize, graph, concept, ns.TeacherForced(steps=2, fidelity=0), ns.LatentShare(), seeds=[0, 1], pairs=1, **STEPS)
    return {
        "generating": (partial(ns.generate, graph, None, [tiny.PROMPT] * 3, [0, 1, 2], 2, **STEPS), "3/3", "image"),
        "editing stipple": (partial(ns.edit, graph, concept, ns.LocoEdit(), [3, 4]), "4/4", "site"),
        "scoring stipple": (screen, "4/4", "step"),
    }


@pytest.mark.parametrize("name", ["generating", "editing stipple", "scoring stipple"])
def test_a_bar_says_how_much_is_done_and_how_long_it_takes(works, name, capsys):
    work, counts, unit = works[name]
    work()
    shown = capsys.readouterr().err.replace("\r", "\n")
    assert re.search(rf"^{name}: 100%.* {counts} \[\d\d:\d\d<\d\d:\d\d, .*{unit}", shown, re.MULTILINE)
    work(quiet=True)
    assert capsys.readouterr().err == ""


def test_one_batch_needs_no_bar(graph, capsys):
    ns.generate(graph, None, [tiny.PROMPT], [0], **STEPS)
    assert capsys.readouterr().err == ""
