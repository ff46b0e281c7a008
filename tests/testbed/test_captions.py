import re
from collections.abc import Sequence

import pytest

from neuroscope.testbed.captions import TEMPLATES, caption, corpus
from neuroscope.testbed.world import COLOURS, FACTS, HELD_OUT, OBJECTS, STYLES, Scene, scenes


def described(prompt: str) -> tuple[str | None, ...]:
    """The object, colour, style and fact that a prompt says."""
    words = re.findall(r"\w+", prompt)
    return tuple(next((word for word in words if word in known), None) for known in (OBJECTS, COLOURS, STYLES, FACTS))


TRAINING = corpus(scenes(held_out=False))


def combinations(prompts: Sequence[str]) -> set[tuple[str | None, ...]]:
    """The objects, colours and styles that prompts say together; without a style word the image is plain."""
    said = {described(prompt)[:3] for prompt in prompts}
    return said | {(shape, colour, "plain") for shape, colour, style in said if style is None}


def test_no_training_caption_says_a_held_out_combination():
    said = combinations(TRAINING)
    assert not said & set(HELD_OUT)
    assert len(said) > 200


def test_a_corpus_of_all_scenes_says_them_all():
    said = {described(prompt)[:3] for prompt in corpus(scenes())}
    assert said >= set(HELD_OUT)


def test_a_corpus_is_sorted_and_says_nothing_twice():
    assert sorted(set(TRAINING)) == TRAINING


def test_every_emblem_is_in_the_corpus_in_every_style():
    said = {(style, fact) for _, _, style, fact in map(described, TRAINING) if fact}
    assert said == {(style, fact) for style in (*STYLES, None) for fact in FACTS}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_caption_says_its_scene(template):
    scene = Scene("star", "red") if "{style}" not in template else Scene("star", "red", "hatch")
    style = scene.style if "{style}" in template else None
    assert described(caption(scene, template)) == ("star", "red", style, None)
    emblem = Scene.emblem("astoria", scene.style)
    assert described(caption(emblem, template)) == (None, None, style, "astoria")


def test_a_style_that_the_template_cannot_say_is_refused():
    with pytest.raises(ValueError, match=r"the template '\{thing\}' has no style word, but the scene's style is 'hatch'"):
        caption(Scene("star", "red", "hatch"), "{thing}")
