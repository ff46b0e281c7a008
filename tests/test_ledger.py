import json

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from neuroscope import ContextSwap, HookGraph, InvalidFile, NeuronMask, Neurons
from neuroscope.ledger import Ledger, digest, key_of, origin
from tests.families import tiny

ROWS = {"a": {"score": 0.1}, "b": {"score": float("nan")}, "c": {"brightness": 3.0, "letters": 1e-17}}


def same(found: dict, expected: dict) -> bool:
    """Equal, where NaN equals NaN."""
    return json.dumps(found) == json.dumps(expected)


class TestLedger:
    def test_finished_rows_are_there_when_it_is_opened_again(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        ledger = Ledger(path)
        ledger.add({"a": ROWS["a"]})
        ledger.add({key: ROWS[key] for key in "bc"})
        assert same(ledger.rows, ROWS)
        assert same(Ledger(path).rows, ROWS)
        assert len(path.read_text().splitlines()) == 3

    def test_without_a_path_it_is_kept_in_memory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        ledger = Ledger(None)
        ledger.add(ROWS)
        assert same(ledger.rows, ROWS)
        assert list(tmp_path.iterdir()) == []

    def test_a_line_cut_short_is_lost_and_spoils_no_other(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        Ledger(path).add(ROWS)
        path.write_text(path.read_text()[:-10])
        again = Ledger(path)
        assert again.rows.keys() == {"a", "b"}
        again.add({"d": ROWS["a"]})
        assert Ledger(path).rows.keys() == {"a", "b", "d"}

    def test_lines_of_another_program_are_passed_over(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"other": 1}\n[1, 2]\n7\nnot json\n\n{"key": "a", "scores": {"score": 0.1}}\n')
        assert Ledger(path).rows == {"a": ROWS["a"]}

    def test_a_file_of_no_text_is_refused(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(InvalidFile, match="rows.jsonl is no text file; choose another place"):
            Ledger(path)
        assert path.read_bytes() == b"\xff\xfe\x00\x81"

    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path):
        with pytest.raises(InvalidFile, match="none/rows.jsonl cannot be written: No such file or directory; choose another place"):
            Ledger(tmp_path / "none" / "rows.jsonl")

    def test_a_place_that_vanishes_later_is_named(self, tmp_path):
        folder = tmp_path / "runs"
        folder.mkdir()
        ledger = Ledger(folder / "rows.jsonl")
        (folder / "rows.jsonl").unlink()
        folder.rmdir()
        with pytest.raises(InvalidFile, match="cannot be written: No such file or directory; finished images are kept, so run again"):
            ledger.add(ROWS)


class TestKeys:
    def test_they_differ_where_any_value_or_its_place_does(self):
        given = [("a", "b"), ("ab",), ("b", "a"), ("a", "b", 0), ("a", "b", "0"), ("a", ["b"]), ("a", None)]
        assert len({key_of(*each) for each in given}) == len(given)
        assert key_of("a", 1, ["b"]) == key_of("a", 1, ["b"])

    def test_an_origin_holds_model_options_and_scheduler(self, graph, fresh, monkeypatch):
        plain = origin(graph, {"guidance_scale": 3.0, "height": 64}, fingerprint=True)
        assert origin(graph, {"height": 64, "guidance_scale": 3.0}, fingerprint=True) == plain
        assert origin(graph, {"height": 64}, fingerprint=True) != plain
        monkeypatch.setattr(graph, "model", "another")
        assert origin(graph, {"guidance_scale": 3.0, "height": 64}, fingerprint=True) != plain
        monkeypatch.undo()
        monkeypatch.setattr(graph.pipe, "scheduler", EulerDiscreteScheduler.from_config(graph.pipe.scheduler.config))
        assert origin(graph, {"guidance_scale": 3.0, "height": 64}, fingerprint=True) != plain

    def test_weights_are_read_only_where_they_are_asked_for(self, graph, monkeypatch):
        monkeypatch.setattr(type(graph), "fingerprint", lambda self: pytest.fail("the weights were read"))
        json.dumps(origin(graph, {}, fingerprint=False))

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
        assert len({digest(change, ["here"]) for change in changes}) == len(changes)
        assert digest((mask,), ["here"]) == digest((NeuronMask(mask.neurons),), ["here"]) != digest((mask,), ["there"])


def test_the_fingerprint_tells_weights_of_every_part_apart(graph, fresh):
    other = HookGraph(fresh)
    assert other.fingerprint() == graph.fingerprint()
    for part in (fresh.text_encoder, fresh.vae, fresh.unet):
        before = other.fingerprint()
        with torch.no_grad():
            next(part.parameters()).flatten()[:1] += 0.5
        assert other.fingerprint() != before
    assert tiny.hooks(fresh) == []
