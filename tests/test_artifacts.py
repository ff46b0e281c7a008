import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neuroscope import (
    Atlas,
    Concept,
    ContextMap,
    ContextSwap,
    DoseResponse,
    Intervention,
    InvalidFile,
    InvalidInput,
    LayerScores,
    LocoEdit,
    NeuronMask,
    Neurons,
    NeuronScores,
    Provenance,
    Recording,
    Welch,
    edit,
    load,
    read_header,
    save,
    score,
)
from neuroscope.core.artifacts import ADDED_FIELDS, RENAMED_FIELDS, Artifact, write_beside
from neuroscope.evaluation._response import Dose
from tests.forging import parts_of, write_parts
from tests.fuzz.examples import examples
from tests.laws.members import members

NEURONS = Neurons({"a": [2, 0], "b": [1]}, {"a": 4, "b": 3}, Provenance("family", "model", "concept", "method"))


@pytest.fixture(scope="module")
def every(recording, graph) -> dict[type, Artifact]:
    """One artefact of each kind."""
    scores = score(recording, Welch())
    value = graph.sites.where(layer=3, role="value")
    mask = NeuronMask(scores.top(5), fill=recording.mean("absent"), strength=0.5, rows="all", tokens=(1, 2), steps=(0.0, 0.5))
    swap = ContextSwap.of(graph, value, "a blue star", neurons=Neurons.at(graph.sites, {value[0].path: [1]}), steps=(0.5, 1.0))
    concept = Concept("stipple", ["a red star in the style of stipple"], ["a red star in the style of plain"])
    made = edit(graph, concept, LocoEdit(), 3)
    doses = (Dose(0, "no change"), Dose(1, "top neurons"), Dose(4, "all neurons"))
    numbers = torch.arange(12, dtype=torch.float64)
    response = DoseResponse(doses, ("m", "n"), ("a",), (0, 1), numbers.reshape(2, 3, 1, 2), ("b", "c"), numbers.reshape(3, 2, 2))
    return {
        type(each): each
        for each in (recording, scores, scores.by_layer(), scores.top(5), mask, swap, made, response, Atlas({"stipple": scores}))
    }


def test_every_kind_of_artefact_comes_back_the_same(every, tmp_path):
    assert set(every) == set(members(Artifact)), "a new kind of artefact needs an example here"
    for kind, artifact in every.items():
        path = save(artifact, tmp_path / "x.safetensors")
        again = load(path)
        assert type(again) is kind
        (tensors, header), (tensors_again, header_again) = artifact.to_parts(), again.to_parts()
        assert json.dumps(header) == json.dumps(header_again)
        assert tensors.keys() == tensors_again.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == tensors_again[name].dtype
            assert torch.equal(tensor, tensors_again[name])
        assert repr(again) == repr(artifact)


def test_the_header_says_what_the_file_is(tmp_path):
    header = read_header(save(NEURONS, tmp_path / "x.safetensors"))
    assert (header["kind"], header["format"]) == ("neurons", "2.0")
    assert header["widths"] == {"a": 4, "b": 3}
    assert header["provenance"] == {"family": "family", "model": "model", "concept": "concept", "method": "method", "contrast": ""}
    assert header["packages"].keys() == {"neuroscope", "torch", "diffusers", "transformers"}


def test_saving_replaces_an_older_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    save(LayerScores((0,), (1.0,)), path)
    save(NEURONS, path)
    assert load(path) == NEURONS
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_share_memory_are_saved(tmp_path):
    fill = torch.zeros(2)
    mask = NeuronMask(Neurons({"a": [0, 1], "b": [0, 2]}, {"a": 4, "b": 4}), fill={"a": fill, "b": fill})
    assert load(save(mask, tmp_path / "x.safetensors")).neurons == mask.neurons


def test_a_pickle_is_refused_and_never_run(tmp_path):
    """Files of other tools (.pth, .pkl) may run anything when they are loaded."""

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"mask": torch.ones(3), "bomb": Bomb()}, tmp_path / "mask.pth")
    with pytest.raises(InvalidFile, match="mask.pth is damaged or not a safetensors file"):
        load(tmp_path / "mask.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, step):
    path = save(LayerScores((0,), (1.0,)), tmp_path / "x.safetensors")
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(
        InvalidFile, match=r"x.safetensors cannot be written: No space left on device; nothing was saved. Choose another place"
    ):
        save(NEURONS, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_an_interrupted_write_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupt(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_beside(tmp_path / "x", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_or_is_in_the_way_is_refused(tmp_path):
    with pytest.raises(InvalidFile, match=r"none/x.safetensors cannot be written: No such file or directory"):
        save(NEURONS, tmp_path / "none" / "x.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidFile, match="folder cannot be written: Is a directory"):
        save(NEURONS, tmp_path / "folder")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_missing_file_is_named_with_a_near_one(tmp_path):
    save(NEURONS, tmp_path / "stipple.safetensors")
    with pytest.raises(InvalidFile, match=r"there is no file .*/stiple.safetensors; did you mean 'stipple.safetensors'\?"):
        load(tmp_path / "stiple.safetensors")
    with pytest.raises(InvalidFile, match=r"there is no file .*/none/x$"):
        load(tmp_path / "none" / "x")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = save(NEURONS, tmp_path / "x.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InvalidFile, match=r"x.safetensors is damaged or not a safetensors file \(.+\); make or copy it again"):
        load(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InvalidFile, match="is a safetensors file that neuroscope did not write; it has no 'neuroscope' header"):
        load(path)


@pytest.mark.parametrize("header", ["{", "{}", '{"kind": "neurons", "format": 1}'])
def test_a_header_without_its_parts_is_refused(tmp_path, header):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"neuroscope": header})
    with pytest.raises(InvalidFile, match="x.safetensors"):
        load(path)


@pytest.fixture
def forged(tmp_path):
    """Writes neurons with a changed header, and a checksum that is right."""

    def write(change=lambda header: None, tensors=None, artifact=NEURONS):
        path = save(artifact, tmp_path / "x.safetensors")
        before, header = parts_of(path)
        change(header)
        return write_parts(path, before | (tensors or {}), header)

    return write


def test_a_newer_format_is_refused(forged):
    path = forged(lambda header: header.update(format="3.0"))
    with pytest.raises(InvalidFile, match="has format 3.0, and this version reads up to 2.0; install a newer neuroscope"):
        load(path)


@pytest.mark.parametrize(
    "format_", [-1, 0.5, True, 2, 2.0, "2", "two", "2.0.0", " 2.0", "2.00", "1.0", "0.1", None, [], "٢.٠", "2." + "9" * 9]
)
def test_a_format_that_is_no_version_is_refused(forged, format_):
    path = forged(lambda header: header.update(format=format_))
    with pytest.raises(InvalidFile, match="x.safetensors has the format .* which is none such as '2.0'; make or copy it again"):
        load(path)


def test_a_file_without_a_checksum_is_refused(forged, tmp_path):
    path = forged(lambda header: header.update(format=1))
    with pytest.raises(InvalidFile, match="has format 1, which has no checksum; make it again with this version"):
        load(path)
    tensors, header = parts_of(forged())
    del header["sha256"]
    save_file(tensors, path, {"neuroscope": json.dumps(header)})
    with pytest.raises(InvalidFile, match="missing required field `sha256`"):
        load(path)


def former(name: str) -> str:
    """What a header field was called before; see `RENAMED_FIELDS`."""
    return next((path.rpartition(".")[2] for path, now in RENAMED_FIELDS.items() if now == name), name)


def with_former_names(value):
    if isinstance(value, dict):
        return {former(name): with_former_names(each) for name, each in value.items()}
    return [with_former_names(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("example", [each for each in examples() if type(each) is not Atlas], ids=lambda example: example.kind)
def test_files_with_the_fields_former_names_are_read(example, tmp_path):
    tensors, header = parts_of(save(example, tmp_path / "x.safetensors"))
    found = load(write_parts(tmp_path / "former.safetensors", tensors, with_former_names(header)))
    assert found.to_parts()[1] == example.to_parts()[1]


def test_files_from_before_a_field_was_added_are_read(tmp_path):
    edit = next(each for each in examples() if isinstance(each, ContextMap) and each.report is not None)
    tensors, header = parts_of(save(edit, tmp_path / "x.safetensors"))
    for path in ADDED_FIELDS:
        parent, _, name = path.partition(".")
        del header[parent][name]
    found = load(write_parts(tmp_path / "former.safetensors", tensors, header), ContextMap)
    assert found.report == replace(edit.report, neighbours={})


def test_every_former_name_was_tried(tmp_path):
    headers = [parts_of(save(example, tmp_path / "x.safetensors"))[1] for example in examples()]
    kept = {f"{part}.{name}" for header in headers for part, fields in header.items() if isinstance(fields, dict) for name in fields}
    assert {f"{path.partition('.')[0]}.{now}" for path, now in RENAMED_FIELDS.items()} <= kept


def newer(header):
    header.update(format="2.1", curvature=3, widths={"a": 4, "b": 3})
    header["provenance"]["author"] = "A. Author"


def test_what_a_newer_minor_format_adds_is_named_once_and_left_out(forged):
    path = forged(newer, {"curvature": torch.ones(2)})
    with pytest.warns(UserWarning, match=r"newer format 2.1; .* left out: \$.provenance.author, \$.curvature, curvature$") as said:
        found = load(path)
    assert len(said) == 1
    assert found == NEURONS
    assert found.provenance == NEURONS.provenance


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda header: header.update(strenght=0.1), r"the field \$.strenght is unknown; did you mean 'strength'\?"),
        (lambda header: header["provenance"].update(concpt="x"), r"the field \$.provenance.concpt is unknown; did you mean 'concept'\?"),
        (lambda header: header["provenance"].pop("concept"), r"the field \$.provenance.concept is missing"),
        (lambda header: header.pop("strength"), "missing required field `strength`"),
        (lambda header: header.update(provenance=3), r"Expected `object`, got `int` - at `\$.provenance`"),
        (lambda header: header["provenance"].update(concept=3), r"Expected `str`, got `int` - at `\$.provenance.concept`"),
        (lambda header: header.update(strength="1"), r"Expected `float`, got `str` - at `\$.strength`"),
        (lambda header: header.update(strength=float("nan")), "NaN, which is no finite number"),
        (lambda header: header.update(strength=True), r"Expected `float`, got `bool` - at `\$.strength`"),
        (lambda header: header.update(tokens=["a"]), r"Expected `int`, got `str` - at `\$.tokens\[0\]`"),
        (lambda header: header.update(tokens=[]), "the mask has no token"),
        (lambda header: header.update(rows="some"), r"Invalid enum value 'some' - at `\$.rows`"),
        (lambda header: header.update(steps=[0.5, 0.5]), "is not a part of the schedule"),
        (lambda header: header.update(steps=5), r"Expected `array`, got `int` - at `\$.steps`"),
        (lambda header: header.update(widths={"a": 4, "b": 0}), "the width of b=0 is not allowed"),
        (lambda header: header.update(widths={"a": 4}), "the tensor 'fill:b' is unknown"),
        (lambda header: header.update(kind=[]), r"Expected `str`, got `array` - at `\$.kind`"),
        (lambda header: header.update(packages={"torch": 2}), r"Expected `str`, got `int` - at `\$.packages\[...\]`"),
        (lambda header: header.pop("packages"), "missing required field `packages`"),
    ],
)
def test_a_wrong_field_is_named_although_the_checksum_is_right(forged, change, said):
    path = forged(change, artifact=NeuronMask(NEURONS))
    with pytest.raises(InvalidFile, match=f"x.safetensors has .*{said}"):
        load(path)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({"fill:a": torch.tensor([0.0, torch.nan])}, "the fill of a holds NaN or infinity"),
        ({"fill:a": torch.zeros(4)}, "the fill of a has shape"),
        ({"fill:a": torch.zeros(2, dtype=torch.float64)}, "the tensor 'fill:a' holds torch.float64, not torch.float32"),
        ({"fill:c": torch.zeros(2)}, "the tensor 'fill:c' is unknown; did you mean 'fill:"),
        ({"indices:a": torch.tensor([0.0, 0.7])}, "the tensor 'indices:a' holds torch.float32, not torch.int32"),
        ({"indices:a": torch.tensor([2, 0], dtype=torch.int32)}, "the neurons of a are not one or more in ascending order"),
        ({"indices:a": torch.tensor([2, 9], dtype=torch.int32)}, "neuron 9 is outside a"),
        ({"indices:a": torch.tensor(2, dtype=torch.int32)}, "the neurons of a are not one or more in ascending order"),
    ],
)
def test_wrong_numbers_are_refused_although_the_checksum_is_right(forged, tensor, said):
    path = forged(tensors=tensor, artifact=NeuronMask(NEURONS))
    with pytest.raises(InvalidFile, match=f"x.safetensors has .*{said}"):
        load(path)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a\0b"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises(InvalidFile, match="cannot be read|there is no file"):
        load(tmp_path / name)


@pytest.mark.parametrize("given", [[NEURONS], NeuronMask, "mask", None])
def test_only_artefacts_are_saved(tmp_path, given, untyped):
    with pytest.raises(InvalidInput, match="what is saved is"):
        save(given, tmp_path / "x")


def test_an_unknown_kind_is_refused_with_a_near_one(forged):
    path = forged(lambda header: header.update(kind="neurns"))
    with pytest.raises(InvalidFile, match=r"holds a 'neurns', which this version cannot read; did you mean 'neurons'\?"):
        load(path)
    assert read_header(path)["kind"] == "neurns"


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = save(LayerScores((0,), (1.0,)), tmp_path / "x.safetensors")
    assert load(path, LayerScores).scores == (1.0,)
    with pytest.raises(InvalidFile, match="holds a layer-scores, but a recording is needed here"):
        load(path, Recording)
    with pytest.raises(InvalidFile, match="holds a layer-scores, but a neuron-scores is needed here"):
        load(path, NeuronScores)


def test_a_file_that_is_no_intervention_is_refused_where_any_is_wanted(tmp_path):
    path = save(LayerScores((0,), (1.0,)), tmp_path / "x.safetensors")
    with pytest.raises(InvalidFile, match="holds a layer-scores, but an intervention is needed here"):
        load(path, Intervention)
