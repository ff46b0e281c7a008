"""Runs the fast tests with the lowest and the newest torch, diffusers and transformers that pyproject.toml allows: `make test-versions`.

`python -m tests.versions --dry-run` only resolves both sets of packages.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv-versions"
VARIED = ("torch", "diffusers", "transformers")
ENDS = ("lowest", "newest")
TESTS = ("-m", "pytest", "-q", "--tb=short", "--numprocesses", "logical", "--maxprocesses", "4", "--dist", "loadfile")


def requirements(end: str) -> list[str]:
    """What pip is asked for: exact lower bounds of what varies, or their ranges, of which pip takes the newest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {re.match(r"[\w.-]+", each)[0]: each for each in project["dependencies"]}
    chosen = [ranges[name] for name in VARIED]
    return [re.sub(r">=([\d.]+).*", r"==\1", each) for each in chosen] if end == "lowest" else chosen


def install(end: str, python: str, *options: str) -> list[str]:
    """The command that installs the project with one end of the versions."""
    return [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--upgrade",
        "--upgrade-strategy",
        "eager",
        *options,
        *requirements(end),
        "--editable",
        ".[dev]",
    ]


def resolve(end: str) -> bool:
    """Whether pip finds packages that fit together; installs nothing."""
    return subprocess.run(install(end, sys.executable, "--dry-run", "--ignore-installed"), cwd=ROOT, check=False).returncode == 0


def run(end: str) -> bool:
    """Whether the fast tests pass in an environment of their own."""
    environment = FOLDER / end
    python = str(environment / "bin" / "python")
    commands = ([sys.executable, "-m", "venv", str(environment)], install(end, python), [python, *TESTS])
    return all(subprocess.run(command, cwd=ROOT, check=False).returncode == 0 for command in commands)


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 if both ends pass."""
    attempt = resolve if "--dry-run" in arguments else run
    passed = {end: attempt(end) for end in ENDS}
    for end, success in passed.items():
        print(f"{end} ({', '.join(requirements(end))}): {'passed' if success else 'FAILED'}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
