"""Which tests are slow, and where fixtures are. Imports nothing that takes time."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

#: Tests, or cases of them, that take longer than the fast suite has time for; see `tests/slowest.py`.
SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text().splitlines())


def pytest_configure(config: pytest.Config) -> None:
    """Loads the fixtures; the process that only hands tests to workers has no use for them, and workers wait for its imports."""
    if hasattr(config, "workerinput") or config.option.dist == "no":
        config.pluginmanager.import_plugin("tests.fixtures")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW & {item.nodeid, item.nodeid.partition("[")[0]}:
            item.add_marker(pytest.mark.slow)
