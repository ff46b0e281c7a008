import math

import numpy as np
import pytest

from neuroscope.core.results.quality import p_minority, p_none, p_tie


def drawn_alike(known: int, of: int, group: int) -> float:
    """The chance that so many drawn of all are of one group."""
    return math.comb(group, known) / math.comb(of, known)


@pytest.mark.parametrize(("known", "of"), [(1, 3), (4, 11), (3, 8), (2, 2), (6, 11)])
def test_a_smaller_half_is_less_than_half(known, of):
    assert p_minority(known, of) == pytest.approx(drawn_alike(known, of, (of - 1) // 2))


@pytest.mark.parametrize(("known", "of"), [(3, 6), (2, 4), (4, 6), (1, 2), (1, 4)])
def test_either_of_two_equal_halves_may_be_drawn(known, of):
    assert p_tie(known, of) == pytest.approx(min(1.0, 2 * drawn_alike(known, of, of // 2)))


@pytest.mark.parametrize("known", [1, 3])
def test_an_odd_number_has_no_equal_halves(known):
    assert p_tie(known, 7) == 0


@pytest.mark.parametrize(("known", "of", "having"), [(4, 32, 4), (4, 11, 2), (11, 11, 2), (2, 3, 1), (10, 10, 1)])
def test_images_that_all_lack_it_are_drawn_from_the_others(known, of, having):
    """A tenth of all, or the least number that is no less."""
    assert p_none(known, of, 0.1) == pytest.approx(drawn_alike(known, of, of - having))


def test_draws_that_agree_are_as_rare_as_it_says():
    """Four of eleven prompts from the smaller group of five: simulated."""
    rng = np.random.default_rng(0)
    alike = [set(rng.permutation(11)[:4]) <= set(range(5)) for _ in range(20000)]
    assert np.mean(alike) == pytest.approx(p_minority(4, 11), abs=0.004)
