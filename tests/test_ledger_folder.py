"""Ledgers in folders: whole files, checksums, conditions, packing, faults, merging and what `show` says."""

import re
import stat
import uuid
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from neuroscope import Cost, HookGraph, InvalidFile, InvalidInput, LedgerSummary, ResumeAnyway, RunConditions, evaluate, merge
from neuroscope.generation.ledgers import is_ledger, open_ledger
from neuroscope.generation.ledgers.folder import PACK, Folder, read_segments
from neuroscope.generation.ledgers.line_file import LineFile
from neuroscope.generation.ledgers.location import Location
from neuroscope.generation.ledgers.segments import SUFFIX, decode
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, Corner

HERE = RunConditions("cpu: NONE", 1, {"neuroscope": "0", "torch": "2", "diffusers": "1", "transformers": "5"})
ELSEWHERE = replace(HERE, device="cuda: T", packages={**HERE.packages, "torch": "3"})
ROWS = {"a": {"score": 0.1}, "b": {"score": float("nan")}, "c": {"brightness": 3.0, "letters": 1e-17}}
IMAGES = {"a": "the first", "b": "the second", "c": "the third"}


CORNER = Corner()
#: What breaks the metric below; its content is not that of the metric.
BROKEN: list[bool] = []


@dataclass(frozen=True)
class Fragile:
    """A metric that fails while something is in the list."""

    name: str = "fragile"

    def __call__(self, images: Any, prompts: Any) -> list[float]:
        if BROKEN:
            raise ZeroDivisionError("it broke")
        return [0.5] * len(images)


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return HookGraph(tiny.shallow())


@pytest.fixture(params=["folder", "memory"])
def where(request, tmp_path) -> str:
    """A new place on a disk, and one in memory."""
    return str(tmp_path / "run") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


def opened(where: Any, conditions: RunConditions = HERE, **options: Any) -> Folder:
    return Folder(Location(str(where)), conditions, **options)


def written(where: Any, rows: dict = ROWS, conditions: RunConditions = HERE, **options: Any) -> None:
    with opened(where, conditions, **options) as ledger:
        ledger.plan("run", "a title", IMAGES, rows.keys() - ledger.rows.keys())
        for key, scores in rows.items():
            ledger.add({key: scores})


def read(where: Any) -> dict:
    """The rows of a ledger in which nothing is to be complained of."""
    with opened(where) as ledger:
        return ledger.rows


def exact(rows: dict) -> dict:
    return {key: {name: value.hex() for name, value in scores.items()} for key, scores in rows.items()}


class TestFolder:
    def test_finished_rows_are_there_when_it_is_opened_again(self, where):
        written(where)
        assert exact(read(where)) == exact(ROWS)

    @settings(max_examples=25, deadline=None)
    @given(st.dictionaries(st.text(), st.dictionaries(st.text(), st.floats()), max_size=4))
    def test_any_names_and_numbers_come_back_to_the_bit(self, rows):
        where = f"memory://{uuid.uuid4().hex}"
        written(where, rows)
        assert exact(read(where)) == exact(rows)

    def test_what_was_added_is_there_before_the_block_ends(self, where):
        with opened(where) as ledger:
            for key, scores in ROWS.items():
                ledger.add({key: scores})
                assert key in read(where)

    def test_files_are_whole_and_their_names_are_never_used_again(self, where):
        seen: dict[str, bytes] = {}
        location = Location(where)
        with opened(where) as ledger:
            for number in range(3 * PACK + 5):
                ledger.add({str(number): {"score": float(number)}})
                now = {name: location.read(name) for name in location.names()}
                assert all(seen.get(name, data) == data for name, data in now.items())
                assert len(now) < PACK + 5
                seen |= now
        assert len(location.names()) == 1
        assert exact(read(where)) == exact({str(number): {"score": float(number)} for number in range(3 * PACK + 5)})

    def test_several_writers_share_it(self, where):
        with opened(where) as first, opened(where) as second:
            first.add({"a": ROWS["a"]})
            second.add({"b": ROWS["b"]})
            second.add({"a": ROWS["a"]})
        assert exact(read(where)) == exact({key: ROWS[key] for key in "ab"})

    def test_a_reader_finds_all_rows_while_files_are_packed(self, where, monkeypatch):
        written(where)
        location = Location(where)
        names, tries = location.names(), []
        monkeypatch.setattr(location, "names", lambda: tries.append(1) or (["gone" + SUFFIX] if len(tries) == 1 else names))
        assert [exact(segment.lines.scores) for segment in read_segments(location)] == [exact(ROWS)]
        assert len(tries) == 2

    def test_costs_of_all_parts_add_up(self, where):
        for rows in (3, 5):
            with opened(where) as ledger:
                for spent in range(1, rows + 1):
                    ledger.spend("run", Cost(spent, 0.5 * spent, 100 * rows))
                    ledger.add({f"{rows} {spent}": {"score": 1.0}})
        with opened(where) as ledger:
            assert ledger.spent("run") == Cost(8, 4.0, 500)
            assert ledger.spent("another") == Cost()

    def test_a_finished_one_is_only_read(self, where):
        written(where)
        before = Location(where).names()
        written(where)
        assert Location(where).names() == before


class TestForms:
    @pytest.mark.parametrize(
        ("place", "kind"), [("new", Folder), ("new.jsonl", LineFile), ("old", LineFile), ("folder", Folder), ("folder.jsonl", Folder)]
    )
    def test_files_stay_files_and_all_else_is_a_folder(self, tmp_path, place, kind):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder.jsonl").mkdir()
        (tmp_path / "old").touch()
        assert type(open_ledger(tmp_path / place, lambda: HERE)) is kind
        assert type(open_ledger("memory://run.jsonl", lambda: HERE)) is Folder

    def test_rows_of_a_file_of_lines_are_merged_into_a_folder(self, tmp_path):
        with LineFile(tmp_path / "old.jsonl") as ledger:
            ledger.add(ROWS)
            ledger.spend("run", Cost(7))
        merged = merge([tmp_path / "old.jsonl"], tmp_path / "new")
        assert (merged.rows, merged.unknown_conditions) == (3, 3)
        assert exact(read(tmp_path / "new")) == exact(ROWS)
        with opened(tmp_path / "new") as ledger:
            assert ledger.spent("run") == Cost(7)

    @pytest.mark.parametrize("url", ["nothing://a/b", "s3-and-more://a"])
    def test_an_unknown_file_system_is_refused_by_name(self, url):
        with pytest.raises(InvalidInput, match=f"{url} cannot be opened: .*; install what it needs, or choose another place"):
            Location(url)

    def test_a_folder_with_other_files_is_refused(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(InvalidFile, match=r"is a folder with other files, such as thesis.tex, and no ledger; choose a new or an empty"):
            read(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class TestDamage:
    def test_every_flipped_bit_is_noticed_and_no_wrong_row_is_read(self):
        with opened(where := f"memory://{uuid.uuid4().hex}") as ledger:
            ledger.add({"a1": {"score": 0.625}})
        (name,) = Location(where).names()
        data = Location(where).read(name)
        for place in range(len(data)):
            flipped = bytearray(data)
            flipped[place] ^= 1
            segment = decode("it", bytes(flipped))
            assert segment.complaint
            assert segment.lines.scores in ({}, {"a1": {"score": 0.625}})

    @pytest.mark.parametrize("cut", [0, 1, 100, -1, -40])
    def test_a_damaged_file_is_named_stays_and_what_it_held_is_made_again(self, where, cut):
        written(where, {"a": ROWS["a"]})
        written(where, {"b": ROWS["b"]})
        location = Location(where)
        name = location.names()[0]
        whole = location.read(name)
        location._files.pipe_file(location._path(name), whole[:cut])
        with pytest.warns(UserWarning, match=f"{re.escape(name)} is damaged.*is made again, and all files stay") as said:
            written(where, {key: ROWS[key] for key in "ab"})
        assert len(said) == 1
        assert location.read(name) == whole[:cut]
        with pytest.warns(UserWarning, match="is damaged"):
            assert exact(read(where)) == exact({key: ROWS[key] for key in "ab"})

    def test_rows_that_differ_are_made_again_once(self, where):
        written(where, {"a": {"score": 1.0}})
        with opened(where) as first, opened(where) as second:
            first.add({"b": {"score": 1.0}})
            second.add({"b": {"score": 2.0}})
        with pytest.warns(UserWarning, match="1 row stands twice in .* with different scores, and none of them is used"):
            written(where, {"b": {"score": 2.0}})
        assert read(where) == {"a": {"score": 1.0}, "b": {"score": 2.0}}

    def test_a_newer_format_is_refused(self, where):
        written(where)
        location = Location(where)
        name = location.names()[0]
        newer = location.read(name).replace(b'{"ledger":1,', b'{"ledger":7,"more":0,')
        location._files.pipe_file(location._path(name), newer)
        with pytest.raises(InvalidFile, match="has the ledger format 7, and this version reads 1; install a newer neuroscope"):
            read(where)


class TestFaults:
    def test_a_full_place_is_named_and_finished_rows_stay(self, where, monkeypatch):
        with opened(where) as ledger, monkeypatch.context() as patch:
            ledger.add({"a": ROWS["a"]})
            full = OSError(28, "No space left on device")
            target = "os.fsync" if "://" not in where else "fsspec.implementations.memory.MemoryFileSystem.pipe_file"
            patch.setattr(target, lambda *_given, **_named: (_ for _ in ()).throw(full))
            with pytest.raises(InvalidFile, match="cannot be written: No space left on device; what is finished is kept: run again"):
                ledger.add({"b": ROWS["b"]})
        assert exact(read(where)) == exact({"a": ROWS["a"]})
        assert len(fsspec.url_to_fs(where)[0].ls(fsspec.url_to_fs(where)[1])) == 1

    def test_a_read_only_place_is_refused_before_any_image(self, graph, tmp_path, monkeypatch):
        def refused(*_given: Any, **_named: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("neuroscope.generation.ledgers.location.write_beside", refused)
        with tiny.counted(graph.denoiser) as calls, pytest.raises(InvalidFile, match="run cannot be written: Permission denied; what is"):
            table(graph, tmp_path / "run")
        assert calls == []

    def test_a_finished_one_can_be_read_only(self, graph, tmp_path):
        found = table(graph, tmp_path / "run")
        (tmp_path / "run").chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            assert table(graph, tmp_path / "run").equals(found)
        finally:
            (tmp_path / "run").chmod(stat.S_IRWXU)

    def test_what_fails_is_listed_with_its_reason_until_it_is_made(self, graph, tmp_path):
        BROKEN.append(True)
        with pytest.raises(ZeroDivisionError):
            table(graph, tmp_path / "run", Fragile())
        BROKEN.clear()
        (run,) = LedgerSummary.of(tmp_path / "run").runs
        assert (run.done, run.images) == (0, 2)
        assert list(run.failed.values()) == ["ZeroDivisionError: it broke"]
        assert "missing: none, 'a red circle" in str(run)
        assert "(ZeroDivisionError: it broke)" in str(run)
        table(graph, tmp_path / "run", Fragile())
        (run,) = LedgerSummary.of(tmp_path / "run").runs
        assert (run.done, run.missing, run.failed) == (2, {}, {})
        assert run.cost.nfe == 2 * 2 + 2  # the image that failed was denoised too


def table(graph: Any, output: Any, metric: Any = CORNER) -> Any:
    options = SMALL | {"batch_size": 1, "controls": False, "quiet": True, "output": output}
    return evaluate(graph, {"none": None}, [STIPPLE[0][0], STIPPLE[1][0]], [3], metric, **options)


class TestConditions:
    def test_a_run_under_others_is_refused_unless_asked_for_and_marked(self, where):
        written(where, {"a": ROWS["a"]}, ELSEWHERE)
        message = (
            r"rows of this run in .* were made under other conditions: device cuda: T \(now cpu: NONE\), torch 3 \(now 2\); new ones could "
            r"differ .* go on with output=ns.ResumeAnyway\(.*\) \(--resume-anyway\)"
        )
        with pytest.raises(InvalidInput, match=message):
            written(where)
        assert read(where).keys() == {"a"}
        written(where, mixed=True)
        found = {conditions.device: rows for conditions, rows in LedgerSummary.of(where).conditions}
        assert found.keys() == {"cuda: T", "cpu: NONE"}
        assert (set(found["cuda: T"]), set(found["cpu: NONE"])) == ({"a"}, {"b", "c"})

    def test_a_finished_run_can_be_read_anywhere_and_another_run_can_be_added(self, where):
        written(where, conditions=ELSEWHERE)
        with opened(where) as ledger:
            ledger.plan("run", "a title", IMAGES, [])
            ledger.plan("another", "a title", {"d": "the fourth"}, ["d"])
            ledger.add({"d": ROWS["a"]})

    def test_every_difference_is_named(self):
        for name, value in (("device", "mps"), ("threads", 7), *((each, "9") for each in HERE.packages)):
            other = replace(HERE, **{name: value}) if hasattr(HERE, name) else replace(HERE, packages={**HERE.packages, name: value})
            assert other.differences(HERE).startswith(f"{name} ")
            assert HERE.differences(HERE) == ""

    def test_an_evaluation_goes_on_anyway(self, graph, tmp_path, monkeypatch):
        with tiny.stopping(graph.denoiser, 3), pytest.raises(KeyboardInterrupt):
            table(graph, tmp_path / "run")
        monkeypatch.setattr("torch.get_num_threads", lambda: 77)
        with (
            tiny.counted(graph.denoiser) as calls,
            pytest.raises(InvalidInput, match=r"other conditions: threads \d+ \(now 77\)"),
        ):
            table(graph, tmp_path / "run")
        assert calls == []
        assert len(table(graph, ResumeAnyway(tmp_path / "run"))) == 2
        assert sorted(len(rows) for _, rows in LedgerSummary.of(tmp_path / "run").conditions) == [1, 1]

    @pytest.mark.parametrize("ledger", [3, "", None])
    def test_what_is_no_place_is_refused(self, ledger, untyped):
        with pytest.raises(InvalidInput, match="ledger is .*, which"):
            ResumeAnyway(ledger)


class TestMerging:
    def parts(self, folder: Path) -> list[Path]:
        written(folder / "1", {key: ROWS[key] for key in "ab"})
        written(folder / "2", {key: ROWS[key] for key in "bc"})
        return [folder / "1", folder / "2"]

    def test_rows_plans_and_costs_become_one(self, tmp_path, where):
        parts = self.parts(tmp_path)
        for number, part in enumerate(parts):
            with opened(part) as ledger:
                ledger.spend("run", Cost(3 + number))
        merged = merge(parts, f"{where}-merged")
        assert exact(read(f"{where}-merged")) == exact(ROWS)
        assert (merged.rows, merged.runs[0].done, merged.runs[0].images, merged.runs[0].cost.nfe) == (3, 3, 3, 7)
        assert len(Location(f"{where}-merged").names()) == 1

    def test_what_no_part_holds_is_missing(self, tmp_path):
        merged = merge(self.parts(tmp_path)[:1], tmp_path / "merged")
        assert merged.runs[0].missing == {"c": "the third"}
        text = str(merged)
        assert "a title\n  2 of 3 images done, 1 missing, 0 of them failed; 0 NFE" in text
        assert "missing: the third" in text

    def test_a_conflict_is_refused_by_name_and_nothing_is_written(self, tmp_path):
        parts = self.parts(tmp_path)
        written(tmp_path / "3", {"a": {"score": 0.1000001}})
        with pytest.raises(InvalidInput, match=r"1 and .*3 hold different scores of the first \(key a\): .*0\.1.* and .*0\.1000001"):
            merge([*parts, tmp_path / "3"], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    def test_different_conditions_are_refused_unless_asked_for(self, tmp_path):
        parts = self.parts(tmp_path)
        written(tmp_path / "3", {"c": ROWS["c"]}, ELSEWHERE)
        with pytest.raises(InvalidInput, match=r"rows of a title were made under different conditions: .*torch.* or give mixed=True"):
            merge([parts[0], tmp_path / "3"], tmp_path / "merged")
        merged = merge([parts[0], tmp_path / "3"], tmp_path / "merged", mixed=True)
        assert sorted((conditions.device, len(rows)) for conditions, rows in merged.conditions) == [("cpu: NONE", 2), ("cuda: T", 1)]

    def test_damage_is_refused_by_name(self, tmp_path):
        parts = self.parts(tmp_path)
        (file,) = parts[1].iterdir()
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(InvalidFile, match=f"{file.name} is damaged.*; nothing was merged. Run that part again"):
            merge(parts, tmp_path / "merged")

    def test_an_output_with_something_in_it_is_refused(self, tmp_path):
        parts = self.parts(tmp_path)
        with pytest.raises(InvalidFile, match="1 is not empty, it holds .*; give a new folder, or remove it first"):
            merge(parts, parts[0])
        (tmp_path / "file").touch()
        for name in ("file", "new.jsonl"):
            with pytest.raises(InvalidFile, match="is a file, or named like one; give a new folder, as merged ledgers are folders"):
                merge(parts, tmp_path / name)

    def test_what_is_no_ledger_is_refused(self, tmp_path):
        with pytest.raises(InvalidInput, match="there is nothing to merge; give at least one ledger"):
            merge([], tmp_path / "merged")
        with pytest.raises(InvalidFile, match="none holds no ledger, no file in it ends in .rows; give the folder"):
            merge([tmp_path / "none"], tmp_path / "merged")


def test_a_ledger_is_told_from_other_files(tmp_path):
    written(tmp_path / "run")
    with LineFile(tmp_path / "old") as ledger:
        ledger.add(ROWS)
    (tmp_path / "scores.safetensors").write_bytes(b"\x10\0\0\0")
    found = {name: is_ledger(str(tmp_path / name)) for name in ("run", "old", "scores.safetensors", "none", "x.jsonl")}
    assert found == {"run": True, "old": True, "scores.safetensors": False, "none": False, "x.jsonl": True}
    assert is_ledger("s3://bucket/run")


def test_no_partial_file_is_left_or_read(tmp_path):
    written(tmp_path)
    (tmp_path / ".neuroscope-0.partial").write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exact(read(tmp_path)) == exact(ROWS)
