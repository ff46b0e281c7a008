"""Sweeps that are killed at random moments and resumed: nothing is made twice, nothing is lost, and tables are the same to the bit."""

import multiprocessing
import os
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neuroscope import HookGraph, LocoGen, evaluate, localize
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, concept_of
from tests.test_evaluation import Brightness

OPTIONS: dict[str, Any] = SMALL | {"batch_size": 3, "quiet": True}
PROMPTS = [present for present, _ in STIPPLE[:3]]
_FORK = multiprocessing.get_context("fork")


def evaluated(graph: HookGraph, output: Path | None = None) -> pd.DataFrame:
    return evaluate(graph, {"mask": tiny.mask(graph)}, PROMPTS, range(4), [Brightness()], output=output, **OPTIONS)


def localized(graph: HookGraph, output: Path | None = None) -> pd.DataFrame:
    options = OPTIONS | {"seeds": range(2), "pairs": 3, "keep_images": 0, "output": output}
    found = localize(graph, concept_of(STIPPLE), LocoGen(window=12), Brightness(), **options)
    values = found.effects.values.flatten().tolist()
    return pd.DataFrame({"values": [*values, *found.effects.total.flatten().tolist()]})


def _logged(graph: HookGraph, run: Callable[..., pd.DataFrame], output: Path, table: Path, log: Path) -> None:
    """A part of a sweep, in a process of its own; each batch that a metric was given is a line of the log."""
    warnings.simplefilter("ignore")
    with log.open("ab", buffering=0) as file:
        handle = graph.denoiser.register_forward_pre_hook(lambda _module, _args: file.write(b"call\n") and None)
        try:
            run(graph, output).to_pickle(table)
        finally:
            handle.remove()


def killed(graph: HookGraph, run: Callable[..., pd.DataFrame], folder: Path, kills: int, rng: random.Random) -> tuple[pd.DataFrame, int]:
    """The table of a sweep that was killed so often, each time after a random number of the denoiser's calls; and all its calls."""
    output, table, log = folder / "rows.jsonl", folder / "table", folder / "log"
    for number in range(kills + 1):
        process = _FORK.Process(target=_logged, args=(graph, run, output, table, log))
        process.start()
        if number < kills:
            after, delay = size_of(log) + 5 * rng.randint(1, 3), rng.random() / 20
            while process.is_alive() and size_of(log) < after:
                time.sleep(0.002)
            time.sleep(delay)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        process.join()
    return pd.read_pickle(table), size_of(log) // 5


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check(graph: HookGraph, run: Callable[..., pd.DataFrame], folder: Path, kills: int, rng: random.Random) -> None:
    """A batch is two calls of the denoiser; at most the batch in which a kill falls is begun again."""
    expected = run(graph)
    found, calls = killed(graph, run, folder, kills, rng)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    with tiny.counted(graph.denoiser) as needed:
        run(graph)
    assert len(needed) <= calls <= len(needed) + 2 * kills
    keys = Counter(line.split('"')[3] for line in (folder / "rows.jsonl").read_text().splitlines() if '"scores"' in line)
    assert set(keys.values()) == {1}


RUNS = [pytest.param(evaluated, id="evaluate"), pytest.param(localized, id="localize")]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_that_was_killed_twice_is_as_one_that_was_not(graph, tmp_path, run):
    check(graph, run, tmp_path, 2, random.Random(0))


@pytest.mark.fuzz
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.filterwarnings("ignore")
def test_sweeps_that_were_killed_at_random_are_as_ones_that_were_not(graph, tmp_path, run):
    seed = int(os.environ.get("FUZZ_SEED") or time.time())
    print(f"FUZZ_SEED={seed}")  # noqa: T201
    rng = random.Random(seed)
    for number in range(9):
        (tmp_path / str(number)).mkdir()
        check(graph, partial(run), tmp_path / str(number), 3, rng)
