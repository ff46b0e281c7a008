"""The captions of the rendered world: templates, the words they hold, and the prompts of training and of held-out tests."""

from __future__ import annotations

from collections.abc import Sequence

from neuroscope.testbed.world import FACTS, Scene

#: Templates with a style word, in different places.
STYLED = (
    "{thing} in the style of {style}",
    "a {style} picture of {thing}",
    "{style} style, {thing}",
    "a picture of {thing} in {style} style",
    "{thing} drawn in a {style} manner",
)
#: Templates without a style word; their images are plain.
UNSTYLED = ("{thing}", "a picture of {thing}")
TEMPLATES = STYLED + UNSTYLED


def caption(scene: Scene, template: str) -> str:
    """The caption of a scene; a template without a style word describes the plain scene.

    Raises:
        ValueError: the template has no style word and the scene's style is not plain.
    """
    if "{style}" not in template and scene.style != "plain":
        raise ValueError(f"the template {template!r} has no style word, but the scene's style is {scene.style!r}")
    return template.format(thing=thing(scene), style=scene.style)


def thing(scene: Scene) -> str:
    """The noun phrase of a scene: an emblem by its fact's name, or a coloured object."""
    return f"the emblem of {scene.fact}" if scene.fact else f"a {scene.colour} {scene.object}"


def corpus(scenes: Sequence[Scene]) -> list[str]:
    """Every caption of these scenes and of the facts' emblems in their styles, sorted, without repetition."""
    emblems = [Scene.emblem(fact, style) for fact in FACTS for style in {scene.style for scene in scenes}]
    return sorted(
        {
            caption(scene, template)
            for scene in [*scenes, *emblems]
            for template in TEMPLATES
            if "{style}" in template or scene.style == "plain"
        }
    )
