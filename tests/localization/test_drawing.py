"""The order in which a search takes images: random, and every prompt's first before any second one."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from neuroscope.generation.patch_runner import random_order

PAIRS, SEEDS = 5, (3, 2**63, 8)


@pytest.fixture
def experiment(untyped) -> SimpleNamespace:
    return SimpleNamespace(pairs=range(PAIRS), seeds=SEEDS)


def test_every_image_is_drawn_once_and_every_prompt_before_any_twice(experiment):
    order = random_order(experiment, 0)
    assert set(order) == {(pair, seed) for pair in range(PAIRS) for seed in SEEDS}
    assert len(order) == PAIRS * len(SEEDS)
    for turn in range(len(SEEDS)):
        assert {pair for pair, _ in order[turn * PAIRS : (turn + 1) * PAIRS]} == set(range(PAIRS))


def test_the_same_seed_draws_the_same(experiment):
    assert random_order(experiment, 4) == random_order(experiment, 4)
    assert random_order(experiment, 4) != random_order(experiment, 5)


def test_every_image_is_as_often_first(experiment):
    """A chi-square test of the first image over 1,500 orders: 15 images, so that 36 is passed once in a thousand."""
    counts = np.array(list(Counter(random_order(experiment, seed)[0] for seed in range(1500)).values()))
    assert len(counts) == PAIRS * len(SEEDS)
    assert ((counts - 100) ** 2 / 100).sum() < 36.1


def test_prompts_do_not_share_their_first_seed(experiment):
    firsts = [{seed for _, seed in random_order(experiment, number)[:PAIRS]} for number in range(20)]
    assert any(len(each) > 1 for each in firsts)
