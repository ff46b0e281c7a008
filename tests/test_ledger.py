import concurrent.futures
import contextlib
import fcntl
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given, settings

from neuroscope import ContextSwap, Cost, HookGraph, InvalidFile, InvalidInput, NeuronMask, Neurons
from neuroscope.generation.keys import digest, fingerprint, key_of, origin
from neuroscope.generation.ledgers import Ledger as MemoryLedger
from neuroscope.generation.ledgers.line_file import LineFile as Ledger
from tests.families import tiny

ROWS = {"a": {"score": 0.1}, "b": {"score": float("nan")}, "c": {"brightness": 3.0, "letters": 1e-17}}


def same(found: dict, expected: dict) -> bool:
    """Equal, where NaN equals NaN."""
    return json.dumps(found) == json.dumps(expected)


def read(path: Path) -> dict:
    """The rows of a file in which nothing is to be complained of."""
    with Ledger(path) as ledger:
        return ledger.rows


def written(path: Path, rows: dict = ROWS) -> list[str]:
    """The lines of a ledger with these rows."""
    with Ledger(path) as ledger:
        ledger.add(rows)
    return path.read_text().splitlines(keepends=True)


class TestLedger:
    def test_finished_rows_are_there_when_it_is_opened_again(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        with Ledger(path) as ledger:
            ledger.add({"a": ROWS["a"]})
            ledger.add({key: ROWS[key] for key in "bc"})
            assert same(ledger.rows, ROWS)
        assert same(read(path), ROWS)
        assert len(path.read_text().splitlines()) == 3

    @settings(max_examples=60, deadline=None)
    @given(st.dictionaries(st.text(), st.dictionaries(st.text(), st.floats()), max_size=4))
    def test_any_names_and_numbers_come_back_to_the_bit(self, tmp_path_factory, rows):
        path = tmp_path_factory.mktemp("ledger") / "rows.jsonl"
        written(path, rows)
        found = read(path) if rows else {}
        assert {key: {name: value.hex() for name, value in row.items()} for key, row in found.items()} == {
            key: {name: value.hex() for name, value in row.items()} for key, row in rows.items()
        }

    def test_without_a_path_it_is_kept_in_memory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with MemoryLedger() as ledger:
            ledger.add(ROWS)
            ledger.spend("run", Cost(3))
        assert same(ledger.rows, ROWS)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("cut", [1, 3, 10, 40])
    def test_a_line_cut_short_is_lost_once_and_spoils_no_other(self, tmp_path, cut):
        path = tmp_path / "rows.jsonl"
        whole = "".join(written(path))
        path.write_text(whole[:-cut])
        if cut == 1:  # the line's end alone is missing
            assert same(read(path), ROWS)
            return
        with pytest.warns(UserWarning, match="rows.jsonl: its last line was cut short, as when a run is killed; these rows are not used"):
            assert read(path).keys() == {"a", "b"}
        assert written(path, {"d": ROWS["a"]})
        assert read(path).keys() == {"a", "b", "d"}

    @pytest.mark.parametrize("raw", [b"prompt,score\na,1\n", b'{"other": 1}\n[1, 2]\n7\n', b"\xff\xfe\x00\x81", b"[" * 200_000])
    def test_a_file_that_is_no_ledger_is_refused_and_stays_as_it_is(self, tmp_path, raw):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(raw)
        with pytest.raises(InvalidFile, match="rows.jsonl is no ledger, none of its lines is a row of one, and it stays as it is; choose"):
            read(path)
        assert path.read_bytes() == raw

    def test_what_is_no_file_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", Path(os.devnull)):
            with pytest.raises(InvalidFile, match="is no regular file, so no rows can be kept there; choose another place"):
                read(path)

    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path):
        with pytest.raises(InvalidFile, match="none/rows.jsonl cannot be written: No such file or directory; choose another place"):
            read(tmp_path / "none" / "rows.jsonl")

    def test_a_full_disk_is_named_and_the_lock_is_gone(self, tmp_path, monkeypatch):
        def full(*_given):
            raise OSError(28, "No space left on device")

        path = tmp_path / "rows.jsonl"
        with Ledger(path) as ledger, monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(InvalidFile, match="cannot be written: No space left on device; finished images are kept, so run again"):
                ledger.add(ROWS)
        assert read(path) == {}


#: Lines in place of the row "b", of which nothing holds.
DAMAGED = {
    "a number for scores": '{"key":"b","scores":3,"attempt":0,"check":"0"}',
    "no key": '{"scores":{}}',
    "text": '{"key":"b","scores":{"score":"high"},"attempt":0,"check":"0"}',
    "null": '{"key":"b","scores":{"score":null},"attempt":0,"check":"0"}',
    "NaN": '{"key":"b","scores":{"score":NaN},"attempt":0,"check":"0"}',
    "brackets": "[" * 200_000,
    "braces": '{"key":' * 100_000,
    "digits": '{"key":"b","scores":{"score":' + "1" * 5000 + '},"attempt":0,"check":"0"}',
    "no Unicode": b'{"key":"b\xff","scores":{"score":1.0},"attempt":0,"check":"0"}',
    "no checksum": '{"key": "b", "scores": {"score": 0.5}}',
    "a list": "[1, 2]",
    "a zero byte": b"\x00" * 100,
}


class TestDamage:
    @pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED.keys())
    def test_a_damaged_row_is_not_used_and_said(self, tmp_path, line):
        path = tmp_path / "rows.jsonl"
        first, _, last = written(path)
        path.write_bytes(first.encode() + (line if isinstance(line, bytes) else line.encode()) + b"\n" + last.encode())
        older = ", 1 of an older version without checksums" if line == DAMAGED["no checksum"] else ""
        with pytest.warns(UserWarning, match=f"rows.jsonl: 1 line is damaged{older}; these rows are not used") as said:
            assert read(path).keys() == {"a", "c"}
        assert len(said) == 1

    def test_every_flipped_bit_of_a_row_is_noticed_or_changes_nothing(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        raw = written(path, {"a1": {"score": 0.625}})[0].encode()
        other = written(tmp_path / "other.jsonl", {"b": {"score": 1.0}})[0].encode()
        for place in range(len(raw) - 1):
            flipped = bytearray(raw)
            flipped[place] ^= 1
            path.write_bytes(other + bytes(flipped))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read(path)
            assert found in ({"b": {"score": 1.0}}, {"b": {"score": 1.0}, "a1": {"score": 0.625}})
            assert "a1" not in found or json.loads(bytes(flipped)) == json.loads(raw)

    def test_another_metrics_row_is_made_again(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        written(path)
        with Ledger(path) as ledger:
            assert ledger.known("a", ["score"]) == {"score": 0.1}
            assert ledger.known("a", ["other"]) is None
            ledger.add({"a": {"other": 2.0}})
        assert read(path)["a"] == {"other": 2.0}


class TestMerging:
    def test_ledgers_are_joined_by_joining_their_files(self, tmp_path):
        parts = [tmp_path / name for name in ("a", "b", "c")]
        for part, rows in zip(parts, ({"1": {"x": 1.0}, "2": {"x": 2.0}}, {"2": {"x": 2.0}, "3": {"x": math.nan}}, {}), strict=True):
            written(part, rows)
        joined = tmp_path / "joined"
        joined.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert same(read(joined), {"1": {"x": 1.0}, "2": {"x": 2.0}, "3": {"x": math.nan}})

    def test_rows_that_differ_are_made_again_once(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        lines = [*written(path, {"1": {"x": 1.0}, "2": {"x": 2.0}}), *written(tmp_path / "other", {"2": {"x": 2.5}})]
        path.write_text("".join(lines))
        with pytest.warns(UserWarning, match="rows.jsonl: 1 row stands there twice with different scores; these rows are not used"):
            assert read(path) == {"1": {"x": 1.0}}
        with pytest.warns(UserWarning, match="twice with different scores"), Ledger(path) as ledger:
            ledger.add({"2": {"x": 2.0}})
        assert read(path) == {"1": {"x": 1.0}, "2": {"x": 2.0}}

    def test_costs_of_all_parts_add_up_and_a_part_counts_once(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        for rows in (3, 5):
            with Ledger(path) as ledger:
                for spent in range(1, rows + 1):
                    ledger.spend("run", Cost(spent, 0.5 * spent, 100 * rows))
        path.write_bytes(path.read_bytes() * 2)
        with Ledger(path) as ledger:
            assert ledger.spent("run") == Cost(8, 4.0, 500)
            assert ledger.spent("another") == Cost()


HOLD = "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.flock(file, fcntl.LOCK_EX); print('locked', flush=True); {then}"


class TestLock:
    @contextlib.contextmanager
    def another_process(self, path: Path, then: str):
        """A process that holds the file's lock."""
        with subprocess.Popen([sys.executable, "-c", HOLD.format(then=then), str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "locked\n"
            yield process

    def test_a_second_process_waits_says_so_once_and_finds_what_the_first_wrote(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        (line,) = written(path, {"1": {"x": 1.0}})
        path.write_text("")
        then = f"import time; time.sleep(0.3); file.write({line!r}.encode()); file.flush()"
        with self.another_process(path, then), pytest.warns(UserWarning, match="another process writes .*; waiting until it is") as said:
            assert read(path) == {"1": {"x": 1.0}}
        assert len(said) == 1

    def test_a_killed_process_leaves_no_lock(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        written(path)
        with self.another_process(path, "import time; time.sleep(60)") as process:
            process.kill()
        assert same(read(path), ROWS)

    def test_this_process_cannot_write_a_file_twice(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        message = "this process writes .*rows.jsonl already, in another call; wait for it, or choose another file"
        with Ledger(path), pytest.raises(InvalidInput, match=message):
            read(path)
        with Ledger(path), concurrent.futures.ThreadPoolExecutor() as pool, pytest.raises(InvalidInput, match=message):
            pool.submit(read, path).result(timeout=10)
        assert read(path) == {}

    def test_others_cannot_lock_it_inside_the_block_and_can_after_it(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        with contextlib.suppress(ZeroDivisionError), Ledger(path):
            with path.open("r+b") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise ZeroDivisionError
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestKeys:
    def test_they_differ_where_any_value_or_its_place_does(self):
        given = [("a", "b"), ("ab",), ("b", "a"), ("a", "b", 0), ("a", "b", "0"), ("a", ["b"]), ("a", None)]
        assert len({key_of(*each) for each in given}) == len(given)
        assert key_of("a", 1, ["b"]) == key_of("a", 1, ["b"])

    def test_an_origin_holds_model_options_and_scheduler(self, graph, fresh, monkeypatch):
        plain = origin(graph, {"guidance_scale": 3.0, "height": 64})
        assert origin(graph, {"height": 64, "guidance_scale": 3.0}) == plain
        assert origin(graph, {"height": 64}) != plain
        monkeypatch.setattr(graph, "model", "another")
        assert origin(graph, {"guidance_scale": 3.0, "height": 64}) != plain
        monkeypatch.undo()
        monkeypatch.setattr(graph.pipe, "scheduler", EulerDiscreteScheduler.from_config(graph.pipe.scheduler.config))
        assert origin(graph, {"guidance_scale": 3.0, "height": 64}) != plain

    def test_a_digest_holds_interventions_with_their_tensors_and_order(self, graph):
        sites = graph.sites.where(layer=8, text_only=True)
        mask = NeuronMask(Neurons.at(graph.sites, {sites[0].path: [1, 2]}))
        swap = ContextSwap.of(graph, sites, "a red circle")
        changes = [
            (),
            (mask,),
            (NeuronMask(mask.neurons, strength=0.5),),
            (NeuronMask(mask.neurons, fill=1.0),),
            (swap,),
            (ContextSwap(swap.paths, swap.context + 1e-3, provenance=swap.provenance),),
            (swap, mask),
            (mask, swap),
        ]
        assert len({digest(change, "here") for change in changes}) == len(changes)
        assert digest((mask,), "here") == digest((NeuronMask(mask.neurons),), "here") != digest((mask,), "there")


def test_the_fingerprint_tells_weights_of_every_part_apart(graph, fresh):
    other = HookGraph(fresh)
    assert fingerprint(other) == fingerprint(graph)
    for part in (fresh.text_encoder, fresh.vae, fresh.unet):
        before = fingerprint(other)
        with torch.no_grad():
            next(part.parameters()).flatten()[:1] += 0.5
        assert fingerprint(other) != before
    assert tiny.hooks(fresh) == []
