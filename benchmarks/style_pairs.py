"""Pairs of prompts that tell the trained model's styles apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import neuroscope as ns
from neuroscope.testbed.world import STYLES

THINGS = ("a red circle", "a green square", "a blue star", "a yellow ring", "a purple triangle", "a cyan cross")
TEMPLATES = ("{} in the style of {}", "a {1} picture of {0}", "a picture of {} in {} style")


def concept(question: str) -> ns.Concept:
    """Every style against every other, or one style against "plain" alone."""
    if question != "style":
        return ns.Concept.style(question, prompts="testbed", against="plain")
    return ns.Concept("style", *zip(*map(_scene, itertools.permutations(range(len(STYLES)), 2)), strict=True))


def _scene(pair: tuple[int, int]) -> tuple[str, str]:
    """One thing in each of two styles, so that no prompt stands in both arms.

    Things follow the rounds of a tournament, in each of which every style meets one other; templates tell a pair from its reverse.
    """
    first, second = sorted(pair)
    last = len(STYLES) - 1
    meeting = (2 * first if second == last else first + second) % last
    template = TEMPLATES[(meeting + (pair[0] > pair[1])) % len(TEMPLATES)]
    present, absent = (template.format(THINGS[meeting], STYLES[number]) for number in pair)
    return present, absent


def against_others(style: str) -> ns.Concept:
    """One style against each other one, for recordings, which cost no denoising: 30 pairs."""
    pairs = [[TEMPLATES[number % 3].format(thing, each) for each in (style, other)] for number, (thing, other) in _others(style)]
    return ns.Concept(style, *zip(*pairs, strict=True))


def _others(style: str) -> Iterator[tuple[int, tuple[str, str]]]:
    return enumerate(itertools.product(THINGS, [other for other in STYLES if other != style]))
