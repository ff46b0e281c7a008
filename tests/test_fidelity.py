import math

import numpy as np
import pytest

from neuroscope import Fidelity, InvalidInput, NeuroscopeError


def test_it_is_spearmans_correlation():
    estimates, effects = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6], [2.0, 0.5, 3.0, 4.0, 8.0, 1.0]
    ranks = [np.argsort(np.argsort(each)) for each in (estimates, effects)]
    expected = 1 - 6 * float(((ranks[0] - ranks[1]) ** 2).sum()) / (6 * (36 - 1))  # Spearman's formula without ties
    assert Fidelity.between(estimates, effects).correlation == pytest.approx(expected)


@pytest.mark.parametrize(("correlation", "count"), [(0.0, 12), (0.6, 12), (0.8, 30)])
def test_its_interval_holds_the_truth_about_as_often_as_it_says(correlation, count):
    rng = np.random.default_rng(0)
    pairs = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=(400, count))
    truth = 6 / math.pi * math.asin(correlation / 2)  # Spearman's of a bivariate normal
    found = [Fidelity.between(each[:, 0], each[:, 1]) for each in pairs]
    assert 0.9 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.985


def test_a_perfect_order_of_a_few_is_no_certainty():
    found = Fidelity.between(range(8), range(8))
    assert found.correlation == found.high == 1
    assert 0.6 < found.low < 0.95
    assert Fidelity.between(range(100), range(100)).low > found.low
    assert Fidelity.between(range(8), range(8)[::-1]).low == -1


def test_it_says_itself_in_one_line():
    assert str(Fidelity(0.831, 0.412, 0.968, 8)) == "rank correlation with exact effects 0.83 [0.41, 0.97] over 8 random neurons"
    assert str(Fidelity.between([1, 1, 1], [1, 2, 3], "layers")) == "rank correlation with exact effects undefined over 3 layers"


def test_of_three_or_of_equals_nothing_is_known():
    for estimates in ([1, 2, 3], [1, 1, 1, 1]):
        found = Fidelity.between(estimates, range(len(estimates)))
        assert (found.low, found.high) == (-1, 1)


@pytest.mark.parametrize(("estimates", "effects"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2, 3, 4])])
def test_too_few_or_unequal_numbers_are_refused(estimates, effects):
    said = rf"compares as many estimates as effects, not {len(estimates)} and {len(effects)}; give at least 3 of each"
    with pytest.raises(InvalidInput, match=said) as caught:
        Fidelity.between(estimates, effects)
    assert isinstance(caught.value, NeuroscopeError)
