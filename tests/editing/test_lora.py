"""LoRA files, loaded by diffusers and peft alone."""

import errno
import os

import pytest
import torch

from neuroscope import HookGraph, InvalidFile, InvalidInput, NeuronMask, UnsupportedModel, export_lora, fold
from tests.editing.test_fold import CLOSE, a_map, mask
from tests.families import tiny

EXPORTED = {
    "map": lambda graph: [a_map(graph)],
    "mask": lambda graph: [mask(graph, "value")],
    "scaled heads": lambda graph: [mask(graph, "heads", strength=-0.5)],
    "keys with a fill": lambda graph: [mask(graph, "key", fill=3.0)],
    "several of different rank": lambda graph: [a_map(graph), mask(graph, "value"), mask(graph, "feedforward")],
}


@pytest.fixture
def other(pipe):
    """Another pipeline of the same weights, as a user without neuroscope has it."""
    other = tiny.sd1()
    other.unet.load_state_dict(pipe.unet.state_dict())
    return other


@pytest.mark.parametrize("name", EXPORTED)
def test_the_loaded_file_makes_the_folded_pictures(graph, pipe, other, untouched, tmp_path, name):
    changes = EXPORTED[name](graph)
    export_lora(graph, changes, tmp_path / "lora")
    with fold(graph, *changes):
        expected = tiny.draw(pipe)
    other.load_lora_weights(tmp_path / "lora", adapter_name="edit")
    torch.testing.assert_close(tiny.draw(other), expected, rtol=0, atol=CLOSE)
    assert float((expected - untouched).abs().max()) > 10 * CLOSE
    other.unload_lora_weights()
    assert torch.equal(tiny.draw(other), untouched)


def test_half_the_adapter_is_half_the_change(graph, pipe, other, tmp_path):
    from dataclasses import replace

    export_lora(graph, a_map(graph), tmp_path)
    with fold(graph, replace(a_map(graph), strength=0.5)):
        expected = tiny.draw(pipe)
    other.load_lora_weights(tmp_path, adapter_name="edit")
    other.set_adapters("edit", 0.5)
    torch.testing.assert_close(tiny.draw(other), expected, rtol=0, atol=CLOSE)


def test_a_fill_that_a_lora_cannot_hold_is_refused(graph, tmp_path):
    with pytest.raises(InvalidInput, match=r"the mask's fill adds a constant to .*to_v, which a LoRA can hold .*fill=0, or write it"):
        export_lora(graph, mask(graph, "value", fill=1.0), tmp_path)
    with pytest.raises(InvalidInput, match="there is nothing to export"):
        export_lora(graph, [], tmp_path)
    with pytest.raises(InvalidInput, match="rows='conditional' cannot be written"):
        export_lora(graph, NeuronMask(mask(graph, "value").neurons), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(graph, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidFile, match="file cannot be written: .*; nothing was saved"):
        export_lora(graph, a_map(graph), tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_refused_in_one_line_and_leaves_nothing(graph, tmp_path, monkeypatch, number):
    def fail(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InvalidFile, match=f"pytorch_lora_weights.safetensors cannot be written: {os.strerror(number)}; nothing was saved"):
        export_lora(graph, a_map(graph), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_beside_the_file(graph, tmp_path):
    path = export_lora(graph, a_map(graph), tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name] == ["pytorch_lora_weights.safetensors"]


def test_weights_behind_a_lora_are_not_changed(graph, other, tmp_path):
    export_lora(graph, a_map(graph), tmp_path)
    other.load_lora_weights(tmp_path, adapter_name="edit")
    loaded = HookGraph(other)
    with pytest.raises(UnsupportedModel, match="carries a LoRA; unload it, or fuse it with"):
        fold(loaded, a_map(graph))
