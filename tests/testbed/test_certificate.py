"""The bundled models keep what their cards say."""

import json

import pytest

from neuroscope import testbed
from neuroscope.testbed.certificate import Certificate, certify
from neuroscope.testbed.planting import Plant


@pytest.fixture(scope="module")
def stored():
    return Certificate(**json.loads((testbed.path("sd1") / "certificate.json").read_text()))


def test_the_card_shows_the_stored_certificate(stored):
    assert (testbed.path("sd1") / "README.md").read_text() == stored.to_card()


def test_the_stored_plant_is_the_one_that_the_package_knows(stored):
    plant = Plant()
    assert stored.planted["layers"] == {name: getattr(plant, name) for name in ("object", "colour", "style", "fact")}
    assert list(stored.planted["style neurons"].values()) == [plant.neurons(96)]


@pytest.mark.slow
@pytest.mark.parametrize("samples", [24])
def test_a_fresh_measurement_agrees_with_the_stored_one(stored, samples):
    measured = certify("sd1", samples=samples, quiet=True)
    for attribute, share in measured.flips.items():
        assert share["planted layer"] == pytest.approx(stored.flips[attribute]["planted layer"], abs=0.15)
        assert share["all other layers"] == pytest.approx(stored.flips[attribute]["all other layers"], abs=0.15)
    assert measured.neuron_flips["planted neurons"] == pytest.approx(stored.neuron_flips["planted neurons"], abs=0.2)
