"""The list of slow tests: made of measured durations, and of tests that are there."""

from tests.conftest import SLOW
from tests.slowest import LONGEST, LONGEST_ALONE, slow_tests


def lines(**seconds: float) -> str:
    return "\n".join(
        f"{value:.2f}s call     tests/test_a.py::{name.replace('__', '[')}{']' * ('__' in name)}" for name, value in seconds.items()
    )


def test_long_cases_are_slow_and_the_cheapest_stays():
    found = slow_tests(lines(test_one__a=LONGEST + 1, test_one__b=LONGEST + 0.5, test_two=LONGEST / 2))
    assert found == ["tests/test_a.py::test_one[a]"]


def test_setups_count_and_a_test_alone_may_take_a_little_longer():
    assert slow_tests(lines(test_one=LONGEST + 0.1)) == []
    setup = f"{LONGEST_ALONE:.2f}s setup    tests/test_a.py::test_one"
    assert slow_tests(lines(test_one=LONGEST + 0.1) + "\n" + setup) == ["tests/test_a.py::test_one"]


def test_every_name_of_the_list_is_a_test_of_this_tree(request):
    root = request.config.rootpath
    named = {name.partition("::")[0] for name in SLOW}
    assert [path for path in named if not (root / path).is_file()] == []
    for name in SLOW:
        test = name.partition("[")[0].rpartition("::")[2]
        assert f"def {test}(" in (root / name.partition("::")[0]).read_text(), name
