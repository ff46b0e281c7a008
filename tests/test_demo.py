"""The demo keeps its promises."""

import pytest

from neuroscope import DoseResponse, NeuronMask, load
from neuroscope.demo import run_demo
from neuroscope.testbed.plant import PLANT


@pytest.mark.slow
def test_the_demo_finds_the_style_and_switches_it_off(tmp_path):
    outcome = run_demo(tmp_path, "stipple", quiet=True)
    score = {(row["intervention"], row["metric"]): row["mean"] for row in outcome["summary"]}
    assert outcome["layer"] == 12
    assert score["mask", "style is stipple"] <= 0.1
    assert score["mask: random", "style is stipple"] >= 0.9
    assert score["edit", "style is stipple"] <= 0.1
    for metric in ("object is right", "colour is right"):
        assert abs(score["mask", metric] - score["none", metric]) <= 0.03
        assert abs(score["edit", metric] - score["none", metric]) <= 0.03
    response = load(tmp_path / "dose.safetensors", DoseResponse)
    assert outcome["smallest"] == response.smallest() == load(tmp_path / "mask.safetensors", NeuronMask).neurons.count
    assert outcome["smallest"] <= PLANT.neuron_count
    shares = response.shares().set_index(["control", "neurons"])
    assert shares.loc[("top neurons", outcome["smallest"]), "low"] > 0.9
    assert shares.loc[("random neurons", outcome["smallest"]), "high"] < 0.5
    written = sorted(path.name for path in tmp_path.iterdir())
    images = ["dose.png", "images.png", "layers.png", "neurons.png"]
    files = ["dose", "edit", "layers", "mask", "neurons"]
    tables = [*(f"{name}.safetensors" for name in files), "evaluation.csv", "report.html"]
    assert written == sorted(images + tables)
