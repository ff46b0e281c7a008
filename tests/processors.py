"""Runs the fast tests with other processors' instructions, and with one thread and two: `make test-processors`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: What limits torch and oneDNN to the instructions of lesser processors; harmless on one that lacks them.
SETTINGS: tuple[Mapping[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
)
THREADS = (1, 2)


def command(threads: int, paths: Sequence[str]) -> list[str]:
    """Pytest, with as many processes of so many threads as there are cores."""
    processes = max(1, min(4, (os.cpu_count() or 1) // threads))
    return [sys.executable, "-m", "pytest", "-q", "--tb=short", "--numprocesses", str(processes), "--dist", "loadfile", *paths]


def environment(setting: Mapping[str, str], threads: int) -> dict[str, str]:
    """This process's, with no other of the settings than this one."""
    rest = {name: value for name, value in os.environ.items() if not any(name in each for each in SETTINGS)}
    return rest | setting | {"OMP_NUM_THREADS": str(threads)}


def run(setting: Mapping[str, str], threads: int, paths: Sequence[str]) -> bool:
    """Whether all tests pass; prints one line, and the whole output where they do not."""
    name = ", ".join([*(f"{key}={value}" for key, value in setting.items()), f"{threads} thread{'s' * (threads > 1)}"])
    start = time.monotonic()
    done = subprocess.run(command(threads, paths), cwd=ROOT, env=environment(setting, threads), capture_output=True, text=True)
    passed = done.returncode == 0
    if not passed:
        print(done.stdout[-20_000:], done.stderr[-2_000:], sep="\n")
    counts = next((line for line in reversed(done.stdout.splitlines()) if " passed" in line or " failed" in line), "no test ran")
    print(f"{name}: {'passed' if passed else 'FAILED'}, {counts.strip('= ')} ({time.monotonic() - start:.0f} s)", flush=True)
    return passed


def main(paths: Sequence[str]) -> int:
    """The exit status: 0 if every run passes."""
    passed = [run(setting, threads, paths) for threads in THREADS for setting in SETTINGS]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
