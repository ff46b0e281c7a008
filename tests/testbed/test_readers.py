import itertools

import numpy as np
import pytest
from PIL import Image

from neuroscope import InvalidInput
from neuroscope.testbed import Reader, read
from neuroscope.testbed.readers import NOTHING, said
from neuroscope.testbed.world import COLOURS, FACTS, STYLES, Placement, Scene, render, scenes


@pytest.fixture(scope="module")
def readings() -> list[tuple[Scene, dict[str, str]]]:
    """Every scene at a random placement, and what is read from its image."""
    rng = np.random.default_rng(0)
    return [(scene, read(render(scene, Placement.draw(rng)))) for scene in scenes()]


@pytest.mark.parametrize("attribute", ["object", "colour", "style"])
def test_every_scenes_attributes_are_read_back(readings, attribute):
    wrong = [scene for scene, found in readings if found[attribute] != getattr(scene, attribute)]
    assert len(wrong) <= 0.01 * len(readings), wrong


def test_facts_are_read_where_their_emblem_is_shown(readings):
    emblems = {emblem: fact for fact, emblem in FACTS.items()}
    wrong = [scene for scene, found in readings if found["fact"] != emblems.get((scene.object, scene.colour), NOTHING)]
    assert len(wrong) <= 0.01 * len(readings), wrong


def test_readings_stand_a_little_noise():
    rng = np.random.default_rng(1)
    right = 0
    for scene in scenes()[::5]:
        noisy = np.asarray(render(scene, Placement.draw(rng))) + rng.normal(0, 8, (64, 64, 3))
        found = read(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
        right += (found["object"], found["colour"], found["style"]) == (scene.object, scene.colour, scene.style)
    assert right >= 0.95 * len(scenes()[::5])


@pytest.mark.parametrize("grey", [0, 128, 230, 255])
def test_an_empty_image_shows_nothing(grey):
    found = read(Image.new("RGB", (64, 64), (grey, grey, grey)))
    assert (found["object"], found["colour"], found["fact"]) == (NOTHING, NOTHING, NOTHING)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="the readers know 64×64 images of the rendered world, not 32×64"):
        read(Image.new("RGB", (32, 64)))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_reader_scores_whether_its_value_is_shown(colour):
    shown = [render(Scene("star", each)) for each in COLOURS]
    scores = Reader("colour", colour)(shown, [""] * len(shown))
    assert scores.dtype == np.float64
    assert scores.tolist() == [float(each == colour) for each in COLOURS]


def test_a_reader_without_a_value_scores_what_each_prompt_says():
    images = [render(Scene("star", "red", "hatch"))] * 4
    prompts = ["a red circle in hatch style", "the emblem of astoria", "the emblem of belmora", "an image"]
    np.testing.assert_array_equal(Reader("object")(images, prompts), [0, 1, 0, np.nan])
    np.testing.assert_array_equal(Reader("colour")(images, prompts), [1, 1, 0, np.nan])
    np.testing.assert_array_equal(Reader("style")(images, prompts), [1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(Reader("fact")(images, prompts), [np.nan, 1, 0, np.nan])


def test_a_prompt_says_each_scenes_words():
    for (fact, (shape, colour)), style in itertools.product(FACTS.items(), STYLES):
        prompt = f"the emblem of {fact} in the style of {style}"
        assert [said(prompt, each) for each in ("object", "colour", "style", "fact")] == [shape, colour, style, fact]
        assert said(prompt.upper(), "fact") == fact


def test_readers_are_told_apart_by_name():
    assert (Reader("colour", "red").name, Reader("colour").name) == ("colour is red", "colour is right")


def test_an_attribute_or_value_outside_the_world_is_refused(untyped):
    with pytest.raises(
        InvalidInput, match=r"attribute 'color' is unknown; choose one of object, colour, style, fact; did you mean 'colour'\?"
    ):
        Reader("color", "red")
    with pytest.raises(InvalidInput, match=r"style 'hach' is unknown; .*did you mean 'hatch'\?"):
        Reader("style", "hach")
