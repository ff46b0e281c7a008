import numpy as np
import pytest
import scipy.stats

from neuroscope import Confidence
from neuroscope.confidence import chance_of_fewer, chance_of_reverse


@pytest.mark.parametrize("of", [1, 2, 7, 8, 32])
def test_pictures_that_all_say_the_same_bound_what_most_say_as_drawing_without_putting_back_does(of):
    """At most this many of all may say something else while fewer than half agree: the hypergeometric chance of drawing none of those."""
    most = (of - 1) // 2
    for known in range(of + 1):
        assert chance_of_fewer(known, of) == pytest.approx(scipy.stats.hypergeom(of, most, known).pmf(known))


def test_a_few_of_very_many_pictures_are_tested_by_students_t():
    differences = np.random.default_rng(0).normal(0.3, 1.0, 9)
    expected = scipy.stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue
    assert chance_of_reverse(differences, 10**9) == pytest.approx(expected, rel=1e-6)


def test_all_pictures_leave_no_doubt():
    assert chance_of_reverse(np.array([0.5, -0.4]), 2) == 0
    assert chance_of_reverse(np.array([0.4, -0.5]), 2) == 1


def test_the_more_of_all_pictures_are_known_the_smaller_the_chance():
    differences = np.array([0.1, 0.4, -0.1, 0.3])
    chances = [chance_of_reverse(differences, of) for of in (4, 5, 8, 100)]
    assert chances == sorted(chances)
    assert chances[0] == 0 < chances[1]


@pytest.mark.parametrize(("differences", "expected"), [([], 0.5), ([1.0], 0.5), ([0.0, 0.0], 0.5), ([0.2, 0.2], 0.0), ([-0.2, -0.2], 1.0)])
def test_too_little_says_nothing_and_no_scatter_says_all(differences, expected):
    assert chance_of_reverse(np.array(differences), 8) == expected


def test_chances_hold_on_average():
    """Of populations whose mean is drawn around 0, as many are below 0 as the chances say, to within a few percent."""
    rng = np.random.default_rng(1)
    stated, wrong = [], []
    for _ in range(4000):
        every = rng.normal(rng.normal(0, 1.0), 1.0, 12)
        stated.append(chance_of_reverse(every[:5], 12))
        wrong.append(every.mean() < 0)
    near = np.abs(np.array(stated) - 0.15) < 0.05
    assert np.mean(np.array(wrong)[near]) == pytest.approx(0.15, abs=0.05)


def test_it_says_what_it_is_about():
    said = str(Confidence(0.962, (3, 12), 4, 32))
    assert said == "96 % sure that all windows would say the same (2 layers alone, on 4 of 32 pictures)"
    assert "(1 layer alone, on 1 of 2 pictures)" in str(Confidence(0.5, (3,), 1, 2))
