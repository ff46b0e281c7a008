import itertools

import numpy as np
import pytest

from neuroscope.testbed.world import (
    ATTRIBUTES,
    COLOURS,
    FACTS,
    HELD_OUT,
    OBJECTS,
    STYLES,
    VALUES,
    Placement,
    Scene,
    pixels,
    render,
    scenes,
    shading,
)


def test_there_are_all_scenes_and_the_held_out_ones_are_kept_apart():
    assert len(scenes()) == len(OBJECTS) * len(COLOURS) * len(STYLES)
    held, kept = scenes(held_out=True), scenes(held_out=False)
    assert {(scene.object, scene.colour, scene.style) for scene in held} == set(HELD_OUT)
    assert not set(held) & set(kept)
    assert set(held) | set(kept) == set(scenes())


def test_every_word_appears_in_training():
    kept = scenes(held_out=False)
    for attribute in ("object", "colour", "style"):
        assert {getattr(scene, attribute) for scene in kept} == set(VALUES[attribute])
    assert set(VALUES) == set(ATTRIBUTES)


def test_emblems_are_scenes_of_training_in_every_style():
    for fact, style in itertools.product(FACTS, STYLES):
        emblem = Scene.emblem(fact, style)
        assert (emblem.object, emblem.colour) == FACTS[fact]
        assert not emblem.held_out


def test_the_colour_stands_in_the_middle_and_the_ground_around_it():
    image = np.asarray(render(Scene("square", "red"))) / 255
    np.testing.assert_allclose(image[32, 32], COLOURS["red"], atol=0.01)
    assert np.ptp(image[2, 2]) == 0  # grey


def test_styles_change_brightness_alone():
    for style in STYLES[:-1]:
        plain, styled = pixels(Scene("circle", "red")), pixels(Scene("circle", "red", style))
        np.testing.assert_allclose(styled, plain * shading(style)[..., None])


def test_a_shape_moves_with_its_placement():
    still, moved = (pixels(Scene("star", "blue"), Placement(x=32 + shift, y=32)) for shift in (0, 3))
    np.testing.assert_allclose(moved[:, 3:], still[:, :-3])


def test_placements_keep_the_shape_inside_the_image():
    rng = np.random.default_rng(0)
    for shape in OBJECTS:
        for _ in range(20):
            image = pixels(Scene(shape, "red"), Placement.draw(rng))
            border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert np.ptp(border, axis=1).max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cirle", "red"), "object 'cirle' is not in the world; choose one of circle, square"),
        (("circle", "pink"), "colour 'pink' is not in the world; choose one of red, green"),
        (("circle", "red", "cubist"), "style 'cubist' is not in the world; choose one of plain, stipple"),
        (("circle", "red", "plain", "astoria"), "the emblem of 'astoria' is not a red circle"),
    ],
)
def test_scenes_outside_the_world_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scene(*arguments)


def test_an_unknown_emblem_is_refused():
    with pytest.raises(KeyError, match="atlantis"):
        Scene.emblem("atlantis")
