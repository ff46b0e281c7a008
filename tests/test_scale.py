"""The simulation of large clusters: exact where a formula is known, and the figures of docs/scale.md are its own."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ray", reason="ray has no build for this Python")
from benchmarks.scale import Cluster, simulate

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


@given(st.integers(1, 40), st.integers(1, 200), st.floats(0.1, 100), st.floats(0, 100))
def test_equal_tasks_take_as_many_rounds_as_each_worker_has(workers, tasks, seconds, start):
    found = simulate(Cluster(workers, seconds, spread=0.0, start=start, handling=0.0), tasks)
    expected = start + math.ceil(tasks / workers) * seconds
    assert math.isclose(found.seconds, expected, rel_tol=1e-9)
    assert math.isclose(found.busy, tasks * seconds / (workers * expected), rel_tol=1e-9)


@given(st.integers(1, 40), st.integers(1, 200))
def test_a_slow_caller_is_all_that_counts(workers, tasks):
    found = simulate(Cluster(workers, 0.0, spread=0.0, start=0.0, handling=1.0), tasks)
    assert math.isclose(found.seconds, tasks)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 200), st.floats(0, 0.3), st.integers(0, 100))
def test_no_worker_waits_but_at_the_end(workers, tasks, spread, seed):
    """All are through once as much is done as there is; after that at most the tasks that were begun or lay there are left."""
    found = simulate(Cluster(workers, 1.0, spread=spread, start=0.0, handling=0.0), tasks, seed)
    total = found.busy * workers * found.seconds
    assert total / workers - 1e-9 <= found.seconds <= total / workers + 2 * (1 + 5 * spread)
    assert found.busy <= 1 + 1e-9


def test_the_table_of_the_docs_is_what_it_says():
    text = PAGE.read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "simulate(" in block)
    said = re.findall(r"^\| (\d+) \| ([0-9.]+) \| (\d+) % \|$", text, re.MULTILINE)
    printed: list[str] = []
    exec(code, {"print": lambda line: printed.append(line)})
    assert printed == [f"{workers} GPUs: {hours} hours, {busy}% busy" for workers, hours, busy in said]
