"""Rewrites the table of families and operations in docs/models.md from a run of tests/families/test_operations.py.

python docs/models.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
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
}
BEGIN, END = "<!-- from the tests -->", "<!-- end -->"


def results() -> dict[tuple[str, str], bool]:
    """By test and family, whether all of its tests passed."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "results.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={written}", TESTS], cwd=ROOT, check=False)
        cases = list(ElementTree.parse(written).iter("testcase"))
    found: dict[tuple[str, str], bool] = {}
    for case in cases:
        name, _, parameters = case.attrib["name"].partition("[")
        family = next(each for each in FAMILIES if parameters.startswith((f"{each}-", f"{each}]")))
        found[name, family] = found.get((name, family), True) and not len(case)
    return found


def table(passed: dict[tuple[str, str], bool]) -> str:
    """Families in rows, operations in columns: yes where every test passed."""
    lines = [f"| | {' | '.join(OPERATIONS.values())} |", "|---" * (len(OPERATIONS) + 1) + "|"]
    for family, name in NAMES.items():
        cells = ["yes" if passed.get((test, family)) else "no" for test in OPERATIONS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the tests and writes the table."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results())}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
