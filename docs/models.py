"""Rewrites the table of families and operations in docs/models.md from a run of tests/families/test_operations.py.

python docs/models.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from neuroscope.testbed import FAMILIES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
TESTS = "tests/families/test_operations.py"
OPERATIONS = {
    "test_rank": "rank",
    "test_mask": "mask",
    "test_apply": "apply (swap)",
    "test_locogen": "LOCOGEN",
    "test_tracing": "tracing",
    "test_locoedit": "LOCOEDIT",
    "test_fold": "fold",
    "test_lora_export": "LoRA file",
    "test_save_and_load": "save, load",
    "test_command_line": "command line",
}
NAMES = {"sd1": "SD v1", "openjourney": "OpenJourney", "sd2": "SD v2", "sdxl": "SDXL", "if-1": "IF stage I", "if-2": "IF stage II"}
BEGIN, END = "<!-- from the tests -->", "<!-- end -->"


class Results:
    """A plugin of pytest that keeps how each test ended."""

    def __init__(self) -> None:
        self.passed: dict[tuple[str, str], bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for the setup, the call and the teardown of each test; all must pass."""
        found = re.search(r"::(\w+)\[(.+)\]", report.nodeid)
        if found:
            family = next(part for part in (found[2], *(f"{found[2].rsplit('-', cut)[0]}" for cut in (1, 2))) if part in FAMILIES)
            key = (found[1], family)
            self.passed[key] = self.passed.get(key, True) and report.passed


def table(passed: dict[tuple[str, str], bool]) -> str:
    """Families in rows, operations in columns: yes where every test passed."""
    lines = [f"| | {' | '.join(OPERATIONS.values())} |", "|---" * (len(OPERATIONS) + 1) + "|"]
    for family, name in NAMES.items():
        cells = ["yes" if passed.get((test, family)) else "no" for test in OPERATIONS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the tests and writes the table; the exit status is pytest's."""
    results = Results()
    status = pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / TESTS)], plugins=[results])
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results.passed)}\n\n{END}{rest.partition(END)[2]}")
    sys.exit(status)


if __name__ == "__main__":
    main()
