"""What starting costs: seconds of processor time, and the modules that are imported, until the package is there or help is printed.

python -m benchmarks.startup
"""

from __future__ import annotations

import json
import subprocess
import sys

#: What is run in a fresh process each.
RUNS = {
    "import neuroscope": "import neuroscope",
    "neuroscope --help": "main(['--help'])",
    "neuroscope localize --help": "main(['localize', '--help'])",
    "neuroscope testbed list": "main(['testbed', 'list'])",
    "import neuroscope; neuroscope.HookGraph": "import neuroscope; neuroscope.HookGraph",
}
MEASURED = """
import atexit, json, resource, sys

def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([used.ru_utime + used.ru_stime, len(sys.modules)]), file=sys.stderr)

atexit.register(report)
"""


def main() -> None:
    print(f"{'run':42}{'seconds':>9}{'modules':>9}")
    for name, code in RUNS.items():
        seconds, modules = measure(code)
        print(f"{name:42}{seconds:9.2f}{modules:9}")


def measure(code: str) -> tuple[float, int]:
    """Seconds of processor time and modules of one run."""
    imports = "from neuroscope.cli import main\n" if "main(" in code else ""
    finished = subprocess.run([sys.executable, "-c", MEASURED + imports + code], check=True, capture_output=True, text=True)
    seconds, modules = json.loads(finished.stderr.splitlines()[-1])
    return seconds, modules


if __name__ == "__main__":
    main()
