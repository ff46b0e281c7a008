import warnings

import pytest

from neuroscope.localization.search.budget import Budget


@pytest.mark.parametrize("beside", [0, 1])
def test_a_sweep_is_all_layers_and_both_ends_on_every_image(beside):
    budget = Budget(0.25, layers=16, beside=beside, images=6)
    assert budget.sweep == (16 + 2 + beside) * 6
    assert budget.allowed == budget.sweep / 4


def test_the_smallest_search_is_a_screen_of_one_image_and_one_layer_against_all_others_on_two():
    """The unchanged runs of two images, the total effect, one layer and all others on both; and what it costs to look."""
    assert Budget(0.05, layers=16, beside=0, images=6).least(0.5) == 2 + 2 * 3 + 0.5
    assert Budget(0.05, layers=16, beside=1, images=6).least() == 2 + 2 * 4
    assert Budget(0.05, layers=1, beside=0, images=1).least() == 1 + 2


def test_a_budget_that_is_large_enough_is_kept_without_a_word():
    budget = Budget(0.1, layers=16, beside=0, images=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert budget.is_kept(look=3.0)


@pytest.mark.parametrize(
    ("share", "images", "look", "said"),
    [
        (0.05, 6, 2.0, "allows the rows of 5.4 of all windows' 108 images, and the smallest search takes those of 10.0, a share of 0.093"),
        (0.05, 1, 0.0, "takes those of at least 4.0, a share of 0.223; it goes on with that. To keep a budget, give 0.223 or more"),
        (0.05, 1, 20.0, "To keep a budget, leave it at 1"),
    ],
)
def test_an_overrun_is_said_with_the_figures_and_what_to_give(share, images, look, said):
    with pytest.warns(UserWarning, match=said):
        assert not Budget(share, layers=16, beside=0, images=images).is_kept(look)


def test_the_budget_that_is_advised_is_kept():
    with pytest.warns(UserWarning, match="give 0.093 or more"):
        Budget(0.05, layers=16, beside=0, images=6).is_kept(2.0)
    assert Budget(0.093, layers=16, beside=0, images=6).is_kept(2.0)


def test_ends_that_were_made_before_cost_nothing_again():
    budget = Budget(0.05, layers=16, beside=0, images=6)
    assert budget.final(3, 2, sources=0) - budget.final(3, 2, sources=4, targets=2) == 3 + 2
    assert Budget.missing_ends(3, sources=2, targets=2) == 2


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.1, 2), (1.0, 4)])
def test_the_screen_takes_its_part_of_the_budget(share, expected):
    """Images of two runs each, while one more at the mean cost so far fits 40 % of 108 · share runs: up to 0.4, 4.3 and 43."""
    assert Budget(share, layers=16, beside=0, images=6).screened_images(2.0, [2.0, 2.0, 2.0]) == expected
