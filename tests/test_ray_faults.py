"""Processes, machines and callers go away at random moments: the run that goes on ends with the same table, and makes nothing twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroscope import evaluate
from tests import ray_driver, ray_parts
from tests.localization.planted import SMALL

pytest.importorskip("ray", reason="ray has no build for this Python")
KILLS = 50
#: Of processes, nodes and callers among what is killed; a caller takes longest to start again.
SHARES = (0.6, 0.25, 0.15)
#: An image takes so long beside its denoising.
SECONDS = 0.3
#: The longest time between two kills, in seconds, and the share of kills that do not wait for a new image first, as in a start.
LONGEST, EARLY = 6.0, 0.2
#: A run that is not killed any more ends within this time.
PATIENCE = 300.0


class Run:
    """A driver on a cluster of three nodes, one of which runs nothing else than the cluster itself."""

    def __init__(self, cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self._nodes = [cluster.add_node(num_cpus=1) for _ in range(ray_driver.WORKERS)]
        self._driver = self._started()
        self.killed: list[str] = []

    def _started(self) -> subprocess.Popen:
        asked = [sys.executable, "-m", "tests.ray_driver", self._cluster.address, str(self._folder), str(SECONDS)]
        return subprocess.Popen(asked, stderr=(self._folder / "errors").open("a"), start_new_session=True)

    def kill_process(self, _rng: np.random.Generator) -> bool:
        """Kills the worker that last made something, if it is there."""
        made = [line for line in self.log() if line[0] == "made"]
        try:
            os.kill(int(made[-1][2]), signal.SIGKILL)
        except (IndexError, ProcessLookupError):
            return False
        return True

    def kill_node(self, rng: np.random.Generator) -> bool:
        """Takes a machine away, and adds another."""
        number = int(rng.integers(len(self._nodes)))
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)
        self._nodes[number] = self._cluster.add_node(num_cpus=1)
        return True

    def kill_driver(self, rng: np.random.Generator) -> bool:
        """Kills or interrupts the caller, and starts it again."""
        self._driver.send_signal(signal.SIGKILL if rng.integers(2) else signal.SIGINT)
        self._driver.wait(timeout=60)
        self._driver = self._started()
        return True

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until the table is there; whether it is."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (code := self._driver.poll()) == 0:
                return True
            if code is not None:
                assert code == ray_driver.FAILED, (self._folder / "errors").read_text()
                self._driver = self._started()  # a task was hit three times: the user runs it again
            time.sleep(0.1)
        return False

    def wait_for_news(self) -> bool:
        """Waits until something was made, or until the table is there; whether it is."""
        before, until = len(self.log()), time.monotonic() + PATIENCE
        while len(self.log()) == before and time.monotonic() < until:
            if self.wait(0.2):
                return True
        return False

    def log(self) -> list[list[str]]:
        """What was made and kept, in order."""
        file = self._folder / "log"
        return [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []

    def check(self, expected: pd.DataFrame) -> None:
        """The table is that of one process, and no image was made after its score was kept."""
        pd.testing.assert_frame_equal(pd.read_pickle(self._folder / "table.pickle"), expected, check_exact=True)
        kept: set[str] = set()
        for what, prompt, _ in self.log():
            assert what == "kept" or prompt not in kept
            kept |= {prompt} if what == "kept" else set()
        assert kept == set(ray_driver.PROMPTS)

    def close(self) -> None:
        """Ends all that runs."""
        self._driver.kill()
        self._driver.wait()
        for node in self._nodes:
            self._cluster.remove_node(node)


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield started
    started.shutdown()


@pytest.fixture(scope="module")
def expected() -> pd.DataFrame:
    """The table of one process."""
    options = SMALL | {"seeds": [0], "controls": False, "batch_size": 2, "quiet": True}
    return pd.DataFrame(evaluate(ray_parts.graph(), {"none": None}, ray_driver.PROMPTS, metrics=ray_parts.Logged(os.devnull, 0), **options))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # Ray's own processes
def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(cluster, expected, tmp_path):
    rng = np.random.default_rng(int(os.environ.get("FUZZ_SEED") or 0))
    killed: list[str] = []
    while len(killed) < KILLS:
        (folder := tmp_path / str(len(killed))).mkdir()
        run = Run(cluster, folder)
        try:
            while len(killed) < KILLS:
                if (rng.uniform() > EARLY and run.wait_for_news()) or run.wait(float(rng.uniform(0, LONGEST))):
                    break
                kinds: list[Callable[[np.random.Generator], bool]] = [run.kill_process, run.kill_node, run.kill_driver]
                kind = kinds[rng.choice(len(kinds), p=SHARES)]
                if kind(rng):
                    killed.append(kind.__name__)
                    (tmp_path / "killed").write_text("\n".join(killed))
            assert run.wait(PATIENCE)
            run.check(expected)
        finally:
            run.close()
    assert set(killed) == {"kill_process", "kill_node", "kill_driver"}
