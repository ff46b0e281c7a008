"""Measuring in a process of its own, whose peak memory is nothing else's."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any


def in_own_process(module: str, call: str) -> Any:
    """What a call of a benchmark module's function gives, in a fresh process; plain JSON values."""
    code = f"import json; from {module} import measure; print(json.dumps({call}))"
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def peak_memory() -> float:
    """The peak memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
