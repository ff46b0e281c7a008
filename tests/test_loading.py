"""Models by name: collections are found by their entry points, and anything else goes to diffusers as it is."""

import importlib.metadata
from dataclasses import replace
from types import SimpleNamespace

import pytest

from neuroscope import InvalidInput, testbed
from neuroscope.pipeline.families import _registry
from neuroscope.pipeline.families.unet import UNET
from neuroscope.pipeline.loading import load_pipeline, resolve


def test_a_collections_model_is_its_folder_and_any_other_name_stays():
    assert resolve("testbed:clip") == testbed.path("clip")
    assert resolve("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
    assert resolve("somewhere:else") == "somewhere:else"


def test_a_folder_with_a_colon_in_its_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "testbed:clip").mkdir()
    assert resolve("testbed:clip") == "testbed:clip"


@pytest.mark.parametrize("ask", [resolve, load_pipeline])
def test_a_mistyped_collection_is_refused_with_the_near_name(ask):
    with pytest.raises(InvalidInput, match="'testbd' is no collection of models; did you mean 'testbed'?"):
        ask("testbd:sd1")


def test_families_of_other_packages_are_found(monkeypatch):
    other = replace(UNET, name="another-unet")
    entry = SimpleNamespace(name="another", load=lambda: other)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == _registry.GROUP else [])
    assert [each.name for each in _registry._find()] == sorted(["another-unet", *(each.name for each in _registry.FAMILIES)])
