"""A process that is killed at any moment loses at most the task in the making."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from neuroscope import LedgerSummary
from neuroscope.generation.ledgers.folder import PACK, Folder
from neuroscope.generation.ledgers.location import Location
from tests.test_ledger_folder import HERE

#: A forked child writes files alone, so that threads of the parent do not matter to it.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def write(folder: Path, said: int) -> None:
    """Writes rows one by one, and after each says so."""
    with Folder(Location(str(folder)), HERE) as ledger:
        os.write(said, b"ready\n")
        first = len(ledger.rows)
        ledger.plan("run", "numbers", {str(number): str(number) for number in range(10_000)}, ["todo"])
        for number in range(first, 10_000):
            ledger.add({str(number): {"score": number / 7}})
            os.write(said, b"%d\n" % number)


def killed(folder: Path, seconds: float) -> int:
    """Lets a process write for a while and kills it; the last row that it said was kept, or -1."""
    heard, said = os.pipe()
    child = os.fork()
    if not child:
        try:
            write(folder, said)
        finally:
            os._exit(1)
    os.close(said)
    with os.fdopen(heard) as lines:
        assert lines.readline() == "ready\n"
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        rows = lines.read().split("\n")[:-1]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return int(rows[-1]) if rows else -1


def kept(folder: Path) -> int:
    """How many rows are kept; they are checked."""
    with Folder(Location(str(folder)), HERE) as ledger:
        rows = ledger.rows
    assert rows == {str(number): {"score": number / 7} for number in range(len(rows))}
    return len(rows)


def check(folder: Path, kills: int, rng: random.Random) -> None:
    before = 0
    for _ in range(kills):
        last = killed(folder, rng.uniform(0, 0.3))
        found = kept(folder)
        assert max(before, last + 1) <= found <= max(before, last + 2)
        before = found
    assert LedgerSummary.of(folder).complaints == () if before else True


def test_three_kills_lose_no_row_that_was_kept(tmp_path):
    check(tmp_path / "run", 3, random.Random(0))


@pytest.mark.parametrize("seed", range(5))
def test_many_kills_lose_no_row_that_was_kept(tmp_path, seed):
    check(tmp_path / "run", 20, random.Random(seed))


@pytest.mark.parametrize(
    ("call", "moment"), [*(("write", moment) for moment in (1, 2, PACK, PACK + 1, PACK + 2)), ("remove", 1), ("remove", 2)]
)
def test_an_end_at_any_write_or_removal_loses_nothing(tmp_path, monkeypatch, call, moment):
    """Where the process ends before a file is written, or before packed files are removed."""
    calls = 0
    whole = getattr(Location, call)

    def ending(self: Location, *given) -> None:
        nonlocal calls
        calls += 1
        if calls >= moment:
            raise SystemExit
        whole(self, *given)

    added: list[int] = []
    monkeypatch.setattr(Location, call, ending)
    with pytest.raises(SystemExit):
        add_all(Folder(Location(str(tmp_path / "run")), HERE), added)
    monkeypatch.undo()
    assert kept(tmp_path / "run") >= len(added)


def add_all(ledger: Folder, added: list[int]) -> None:
    """Adds rows and lists those that were kept, until something ends it."""
    with ledger:
        for number in range(2 * PACK * PACK):
            ledger.add({str(number): {"score": number / 7}})
            added.append(number)
