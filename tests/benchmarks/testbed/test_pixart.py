"""The recipe of the transformer from end to end, with stages of one step."""

from functools import partial

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from benchmarks.testbed import pixart, recipes
from benchmarks.testbed.loop import Schedule
from benchmarks.testbed.stages import Stage
from neuroscope import HookGraph, testbed
from neuroscope.testbed.plant import PIXART_PLANT
from neuroscope.testbed.world import SIZE

STEP = Schedule(steps=1, batch=2, rate=1e-3, warmup=1, checkpoint_every=1)


@pytest.fixture
def short(monkeypatch):
    """Stages of one step, from one view of each scene."""
    monkeypatch.setattr(pixart, "STAGES", {name: Stage(STEP, stage.plant) for name, stage in pixart.STAGES.items()})
    monkeypatch.setattr(pixart, "train_t5", partial(pixart.train_t5, schedule=STEP))
    monkeypatch.setattr(pixart, "_VIEWS", 1)


def test_the_recipe_makes_a_pipeline_that_draws_with_a_known_plant(short, tmp_path):
    place = recipes.train("pixart", tmp_path, quiet=True)
    assert place == tmp_path / "models" / "pixart"
    assert sorted(each.name for each in (tmp_path / "stages").iterdir()) == sorted(["t5", *pixart.STAGES])
    graph = HookGraph(DiffusionPipeline.from_pretrained(place, dtype=torch.float32))
    assert len(graph.sites.layers) == pixart.DEPTH
    (value,) = graph.sites.where(layer=PIXART_PLANT.style, role="value")
    assert value.width > len(PIXART_PLANT.neurons(value.width))
    (image,) = graph.pipe("a red star", num_inference_steps=1, use_resolution_binning=False, clean_caption=False).images
    assert isinstance(image, Image.Image)
    assert image.size == (SIZE, SIZE)


def test_the_twin_is_made_without_the_plants_stage(short, tmp_path):
    recipes.train("pixart-natural", tmp_path, quiet=True)
    assert not (tmp_path / "stages" / "pixart").exists()


def test_the_autoencoder_is_that_of_the_bundled_unet(short):
    ours, theirs = pixart._autoencoder(), testbed.load("sd1").vae
    assert all(torch.equal(*pair) for pair in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.dtype == torch.float32


def test_attributes_are_planted_in_layers_of_their_own_with_blocks_behind_them():
    layers = [getattr(PIXART_PLANT, attribute) for attribute in ("object", "style", "colour")]
    assert len(set(layers)) == 3
    assert max(layers) < pixart.DEPTH - 1
