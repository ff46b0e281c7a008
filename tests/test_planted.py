"""The battery of methods on plants: each finds what is planted, or misses it for a reason that is written down."""

import pytest

from benchmarks.planted import BY_NATURE, METHODS, battery, reason
from neuroscope.testbed import PLANTS


@pytest.mark.slow
@pytest.mark.parametrize("plant", ["layer", "apart", "redundant", "both", "schedule", "neurons"])
def test_every_miss_has_a_reason_and_an_option_hits(plant):
    rows = [row for row in battery("sd1", plant, 0) if "hit" in row]
    assert len(rows) == len(METHODS)
    assert not [row["method"] for row in rows if not row["hit"] and reason(row["method"], plant) is None]
    hits = {row["method"] for row in rows if row["hit"]}
    assert {"LOCOGEN, sets"} <= hits
    assert ("LOCOGEN, window 1" in hits) == (plant != "redundant")
    assert ("LOCOGEN, sufficiency" in hits) == (plant != "both")


def test_reasons_are_of_methods_and_plants_that_there_are():
    names = {method.name for method in METHODS} | {"rankings"}
    assert all(name in names and plant in PLANTS for name, plant in BY_NATURE)
    assert reason("Welch", "nothing") == BY_NATURE["rankings", "nothing"]
    assert reason("LOCOGEN, window 1", "layer") is None
