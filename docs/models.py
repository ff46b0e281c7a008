"""Rewrites the table of families and operations in docs/models.md from a run of tests/families/test_operations.py.

python docs/models.py         runs them all
python docs/models.py sana    runs those of some families alone, and leaves the other rows as they are
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

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
NAMES = {
    "sd1": "SD v1",
    "openjourney": "OpenJourney",
    "sd2": "SD v2",
    "sdxl": "SDXL",
    "if-1": "IF stage I",
    "if-2": "IF stage II",
    "pixart": "PixArt",
    "audioldm2": "AudioLDM 2",
    "stable-audio": "Stable Audio",
    "sana": "Sana",
    "hunyuandit": "HunyuanDiT",
    "animatediff": "AnimateDiff",
    "ltx": "LTX-Video",
    "wan": "Wan",
}
BEGIN, END = "<!-- from the tests -->", "<!-- end -->"


def family_of(case: str) -> str | None:
    """The family of a test's case."""
    parameters = case.partition("[")[2]
    return next((each for each in FAMILIES if parameters.startswith((f"{each}-", f"{each}]"))), None)


def chosen_tests(families: Sequence[str]) -> list[str]:
    """The tests of some families; all where there is none."""
    if not families:
        return [TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "", TESTS]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return [each for each in listed if family_of(each) in families]


def results(families: Sequence[str]) -> dict[tuple[str, str], bool]:
    """By test and family, whether all of its tests passed, the slow ones included."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "results.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "", f"--junitxml={written}", *chosen_tests(families)], cwd=ROOT, check=False
        )
        cases = list(ElementTree.parse(written).iter("testcase"))
    found: dict[tuple[str, str], bool] = {}
    for case in cases:
        name, family = case.attrib["name"].partition("[")[0], family_of(case.attrib["name"])
        if family is not None:
            found[name, family] = found.get((name, family), True) and not len(case)
    return found


def known_rows(page: str) -> dict[str, str]:
    """The lines of the page's table by the names with which they begin."""
    return {found[1]: found[0] for found in re.finditer(r"\| ([^|]+?) \|.*\|", page)}


def table(passed: dict[tuple[str, str], bool], families: Sequence[str], known: dict[str, str]) -> str:
    """Families in rows, operations in columns: yes where every test passed. Rows of other families stay as they are known."""
    lines = [f"| | {' | '.join(OPERATIONS.values())} |", "|---" * (len(OPERATIONS) + 1) + "|"]
    for family, name in NAMES.items():
        if families and family not in families:
            lines.append(known[name])
            continue
        cells = ["yes" if passed.get((test, family)) else "no" for test in OPERATIONS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the tests and writes the table."""
    families = sys.argv[1:]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    former, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results(families), families, known_rows(former))}\n\n{END}{after}")


if __name__ == "__main__":
    main()
