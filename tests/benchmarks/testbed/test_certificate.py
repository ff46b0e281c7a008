"""The bundled models keep what their cards say."""

import json
import math

import pytest
import scipy.stats

from benchmarks.testbed.certificate import Certificate, certify, share_interval
from neuroscope import InvalidInput, testbed
from neuroscope.testbed.plant import PIXART_PLANT, PLANT

PLANTS = {"sd1": PLANT, "pixart": PIXART_PLANT}


def read(name: str) -> Certificate:
    return Certificate.from_json((testbed.path(name) / "certificate.json").read_text())


@pytest.fixture(scope="module")
def stored():
    return read("sd1")


@pytest.mark.parametrize("name", testbed.pipelines())
def test_the_card_and_the_file_show_the_stored_certificate(name):
    text = (testbed.path(name) / "certificate.json").read_text()
    certificate = Certificate.from_json(text)
    assert (testbed.path(name) / "README.md").read_text() == certificate.to_card()
    assert text == certificate.to_json()


@pytest.mark.parametrize(("count", "of"), [(0, 16), (1, 16), (27, 28), (28, 28), (30, 60)])
def test_an_interval_leaves_at_most_a_fortieth_on_either_side(count, of):
    low, high = share_interval(count, of)
    binom = scipy.stats.binom
    assert low == 0 if count == 0 else binom.sf(count - 1, of, low) == pytest.approx(0.025)
    assert high == 1 if count == of else binom.cdf(count, of, high) == pytest.approx(0.025)
    assert low <= count / of <= high


def test_shares_of_images_are_reported_with_their_intervals(stored):
    """The bounds of none and of all have a closed form."""
    lowest, flipped = 0.025 ** (1 / 60), stored.flips["object"]
    assert (flipped["planted layer"], flipped["untouched"], stored.samples) == (1.0, 0.0, 60)
    found = json.loads(stored.to_json())["intervals"]["flips"]["object"]
    assert found["planted layer"] == pytest.approx([lowest, 1])
    assert found["untouched"] == pytest.approx([0, 1 - lowest])
    assert f"100.0% ({100 * lowest:.0f}–100)" in stored.to_text()
    assert f"0.0% (0–{100 * (1 - lowest):.0f})" in stored.to_text()


@pytest.mark.parametrize("name", PLANTS)
def test_the_stored_plant_is_the_one_that_the_package_knows(name):
    plant, planted = PLANTS[name], read(name).planted
    assert planted["layers"] == {attribute: getattr(plant, attribute) for attribute in ("object", "colour", "style", "fact")}
    assert list(planted["style neurons"].values()) == [plant.neurons(96)]


@pytest.mark.parametrize("name", PLANTS)
def test_planted_layers_and_neurons_have_what_they_were_given(name):
    certificate = read(name)
    for attribute, shares in certificate.flips.items():
        assert certificate.obeyed[attribute] >= 0.9
        assert shares["planted layer"] >= 0.9
        assert shares["all other layers"] <= 0.1
        assert shares["untouched"] <= 0.1
    assert certificate.neuron_flips["planted neurons"] >= 0.9
    assert certificate.neuron_flips["keys and other value neurons"] <= 0.1


def test_a_card_names_the_class_of_its_pipeline():
    assert "A small `StableDiffusionPipeline` that" in read("sd1").to_card()
    assert "A small `PixArtAlphaPipeline` that" in read("pixart").to_card()


WRONG_NUMBERS = (math.nan, math.inf, -math.inf, "1", True, None, [1], 1j, 0, -1)


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("name", ("clip", "sd2", None, 3, "sd1/layer")),
        ("samples", WRONG_NUMBERS),
        ("quiet", (1, 0.0, "yes", None)),
    ],
)
def test_every_wrong_argument_is_refused_before_anything_is_loaded(argument, values, monkeypatch, untyped):
    monkeypatch.setattr(testbed, "load", lambda name: pytest.fail("loaded"))
    for value in values:
        with pytest.raises(InvalidInput) as caught:
            certify(**{"name": "sd1", argument: value})
        text = str(caught.value)
        assert "\n" not in text
        assert len(text) < 400


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_a_fresh_measurement_agrees_with_the_stored_one(name):
    stored, measured = read(name), certify(name, samples=24, quiet=True)
    for attribute, share in measured.flips.items():
        assert share["planted layer"] == pytest.approx(stored.flips[attribute]["planted layer"], abs=0.15)
        assert share["all other layers"] == pytest.approx(stored.flips[attribute]["all other layers"], abs=0.15)
    assert measured.neuron_flips["planted neurons"] == pytest.approx(stored.neuron_flips["planted neurons"], abs=0.2)
