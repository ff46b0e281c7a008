"""Which tests are slow, by measured durations; `tests/conftest.py` marks those that `tests/slow.txt` names.

    pytest -m "not fuzz" --durations=0 --durations-min=0.3 > durations.txt
    python -m tests.slowest durations.txt > tests/slow.txt

Of a test with parameters the cheapest case stays in the fast suite, unless it is slow itself.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

#: Seconds of one quiet core, with the setup of what a test is the first to use: a case that takes more is slow, and so is the
#: only (or the cheapest) case of a test from the second number on.
LONGEST, LONGEST_ALONE = 0.7, 3.0
_LINE = re.compile(r"([\d.]+)s (?:call|setup|teardown)\s+(\S+?::.+)")


def slow_tests(durations: str) -> list[str]:
    """The names of the slow cases, or of whole tests, in pytest's report of durations."""
    seconds: Counter[str] = Counter()
    for found in map(_LINE.match, durations.splitlines()):
        if found:
            seconds[found[2].strip()] += float(found[1])
    tests: defaultdict[str, list[str]] = defaultdict(list)
    for case in seconds:
        tests[case.partition("[")[0]].append(case)
    return sorted(name for test, cases in tests.items() for name in _slow_cases(test, cases, seconds))


def _slow_cases(test: str, cases: list[str], seconds: Counter[str]) -> list[str]:
    """Cases that the report leaves out took no time worth reporting, and stay."""
    slow = [case for case in cases if seconds[case] > LONGEST]
    cheapest = min(cases, key=lambda case: seconds[case])
    if seconds[cheapest] > LONGEST_ALONE and cases == [test]:
        return [test]
    return [case for case in slow if case != cheapest or seconds[cheapest] > LONGEST_ALONE]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{name}\n" for name in slow_tests(Path(sys.argv[1]).read_text())))
