"""Damaged files: each is refused by the one error, or is what it was; none is used as something else."""

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroscope import LayerScores, NeuronScores, NeuroscopeError, load, read_header, save
from neuroscope.core.artifacts import ADDED_FIELDS, FLOATS, Artifact
from tests.forging import Parts, parts_of, write_parts
from tests.fuzz.examples import examples
from tests.laws.members import members

EXAMPLES = examples()
VALUES = [None, True, -1, 0, 1, 3, 0.5, 2**63, 2**64 - 1, 2**70, 1e300, "", "1", "é", [], [1], ["a"], {}, {"a": 1}, [[]], "\ud800"]
#: What a file may lack, tensors and fields of free mappings: it is then another sound file.
OPTIONAL = ("outgoing:", "pooled", "sheet", "present.samples", "absent.samples", "p_value:")
TEXTS = {
    "NaN": lambda text, rng: text.replace(":", ": NaN, ", 1),
    "nested": lambda text, rng: text[:-1] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "long": lambda text, rng: text[:-1] + ', "long": ' + "9" * 5000 + "}",
    "large": lambda text, rng: text[:-1] + ', "large": 1e400}',
    "infinite": lambda text, rng: text[:-1] + ', "infinite": -Infinity}',
    "twice": lambda text, rng: text[:-1] + ', "kind": ' + json.dumps(json.loads(text)["kind"]) + "}",
    "cut": lambda text, rng: text[: rng.randrange(len(text))],
    "list": lambda text, rng: f"[{text}]",
}

#: A mapping whose entries have names of their own, so that one may be missing or new.
_MAPPING = "report.neighbours"


def test_every_kind_has_an_example():
    assert {type(each) for each in EXAMPLES} == set(members(Artifact)), "a new kind of artefact needs an example in tests/fuzz/examples.py"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.kind)
def test_damaged_files_are_refused_or_the_same(example, tmp_path):
    attack(example, tmp_path, seed=0, count=60)


@pytest.mark.fuzz
def test_many_damaged_files_are_refused_or_the_same(tmp_path, capsys):
    seed = int(os.environ.get("FUZZ_SEED") or time.time_ns() % 2**32)
    total: Counter[str] = Counter()
    for example in EXAMPLES:
        total += attack(example, tmp_path, seed, count=1750)
    with capsys.disabled():
        sys.stdout.write(f"\nFUZZ_SEED={seed}: {total.total():,} damaged files: {dict(total)}\n")
    assert total.total() >= 20_000


@pytest.mark.fuzz
@pytest.mark.parametrize("example", [EXAMPLES[0], EXAMPLES[7]], ids=lambda each: each.kind)
def test_every_single_flip_is_noticed(example, tmp_path):
    """Every bit of a file, one after the other."""
    whole = save(example, tmp_path / "x").read_bytes()
    parts = parts_of(tmp_path / "x")
    for place in range(8 * len(whole)):
        expect_refused_or_same(tmp_path / "y", flipped(whole, place), parts, f"bit {place}")


def test_every_flip_in_the_numbers_is_noticed(tmp_path):
    whole = save(EXAMPLES[0], tmp_path / "x").read_bytes()
    for place in range(8 * (len(whole) - 12), 8 * len(whole)):  # three int32 indices
        (tmp_path / "y").write_bytes(flipped(whole, place))
        with pytest.raises(NeuroscopeError, match="its checksum is not that of its contents"):
            load(tmp_path / "y")


def attack(example: Artifact, folder: Path, seed: int, count: int) -> Counter[str]:
    """Damages a file `count` times; counts what became of it, by the kind of damage."""
    path = save(example, folder / "x")
    whole, parts, found = path.read_bytes(), parts_of(path), Counter()
    for number in range(count):
        rng = random.Random(f"{seed} {example!r} {number}")
        case = f"FUZZ_SEED={seed}, {example.kind}, case {number}"
        damage = (in_bytes, in_text, in_header, in_header, in_tensors)[number % 5]
        found[damage.__name__ + (" loaded" if damage(folder / "y", whole, parts, rng, case) else " refused")] += 1
    return found


def flipped(whole: bytes, place: int) -> bytes:
    data = bytearray(whole)
    data[place // 8] ^= 1 << place % 8
    return bytes(data)


def in_bytes(path: Path, whole: bytes, parts: Parts, rng: random.Random, case: str) -> bool:
    """Bits flipped, bytes cut off, left out or put in; the checksum is what it was."""
    place = rng.randrange(len(whole))
    some = rng.randbytes(rng.randint(1, 8))
    rest = whole[place:]
    bit = rng.randrange(8 * len(whole))
    data = rng.choice([flipped(whole, bit), whole[:place], whole[:place] + rest[1:], whole[:place] + some + rest])
    return expect_refused_or_same(path, data, parts, case)


def expect_refused_or_same(path: Path, data: bytes, parts: Parts, case: str) -> bool:
    path.write_bytes(data)
    loaded = used(path, case)
    if loaded:
        (tensors, header), (before, header_before) = parts_of(path), parts
        assert header == header_before, f"{case}: another header was used"
        assert same(tensors, before), f"{case}: other numbers were used"
    return loaded


def in_text(path: Path, whole: bytes, parts: Parts, rng: random.Random, case: str) -> bool:
    """The header's text is no header any more."""
    name = rng.choice(sorted(TEXTS))
    changed = TEXTS[name](json.dumps(parts[1]), rng)
    length = int.from_bytes(whole[:8], "little")
    outer = json.loads(whole[8 : 8 + length])
    outer["__metadata__"]["neuroscope"] = changed
    text = json.dumps(outer).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    assert not used(path, f"{case}, {name}"), f"{case}: {name} was used"
    return False


def in_header(path: Path, whole: bytes, parts: Parts, rng: random.Random, case: str) -> bool:
    """A field has another value, is missing or is new; the checksum is right."""
    header = json.loads(json.dumps(parts[1]))
    place, parent, key = rng.choice([each for each in places(header) if each[0] != "sha256"])
    damage, former = rng.choice(["value", "missing", "new"]), parent[key]
    if damage == "value":
        parent[key] = rng.choice(VALUES)
    elif damage == "missing":
        del parent[key]
    else:
        (former if isinstance(former, dict) else header)["strenght"] = rng.choice(VALUES)
    loaded = used(write_parts(path, parts[0], header), case)
    wrong = damage == "new" or (damage == "missing") or kind_of(former) != kind_of(parent[key])
    if loaded and damage == "value" and parent[key] is None:
        wrong = False  # a field that may be empty
    if loaded and damage == "value" and former is None:
        wrong = False  # a field that was empty
    assert not (loaded and wrong and not may_be_so(place, parent, damage)), f"{case}: {place} was {former!r}, {damage}"
    return loaded


def may_be_so(place: str, parent: Any, damage: str) -> bool:
    """Whether a header with this damage is as good as the whole one."""
    if damage == "new" and place == _MAPPING:
        return True
    missing = damage == "missing" and (isinstance(parent, list) or place in ADDED_FIELDS or place.startswith(f"{_MAPPING}."))
    return missing or place.startswith("packages")


def in_tensors(path: Path, whole: bytes, parts: Parts, rng: random.Random, case: str) -> bool:
    """A tensor has other numbers, another format or shape, is missing or is new; the checksum is right."""
    tensors, header = dict(parts[0]), parts[1]
    name = rng.choice(sorted(tensors))
    before = tensors[name]
    damage = rng.choice(["nan", "infinity", "dtype", "axis", "empty", "missing", "new", "renamed"])
    wrong = True
    if damage in ("nan", "infinity"):
        if not before.is_floating_point():
            return False
        tensors[name] = before.clone()
        tensors[name].view(-1)[rng.randrange(before.numel())] = torch.nan if damage == "nan" else -torch.inf
        wrong = not (damage == "nan" and name in ("effects", "full", "measured"))
    elif damage == "dtype":
        tensors[name] = before.to(rng.choice([each for each in (*FLOATS, torch.int64, torch.bool) if each != before.dtype]))
        wrong = not (
            before.dtype in FLOATS and tensors[name].dtype in FLOATS and name.split(":")[0] in ("context", "pooled", "read", "write")
        )
    elif damage in ("axis", "empty"):
        tensors[name] = before.unsqueeze(0) if damage == "axis" else before[:0]
    elif damage == "missing":
        wrong = not name.startswith(OPTIONAL)
        del tensors[name]
    else:
        tensors["unet.0.kye"] = tensors.pop(name) if damage == "renamed" else before
    loaded = used(write_parts(path, tensors, header), f"{case}, {name} {damage}")
    assert not (loaded and wrong), f"{case}: {name} was used with {damage}"
    return loaded


def used(path: Path, case: str) -> bool:
    """Whether a file can be read and used; anything but the package's own errors fails."""
    header, artifact = (attempted(path, case, read) for read in (read_header, load))
    if artifact is None:
        return False
    assert header is not None, f"{case}: load reads what read_header refuses"
    try:
        use(artifact, path.with_name("again"))
    except BaseException as error:
        raise AssertionError(f"{case}: use gives {error!r}") from error
    return True


def attempted(path: Path, case: str, read: Callable[[Path], Any]) -> Any:
    """What is read; None where it is refused in words that name the file."""
    try:
        return read(path)
    except NeuroscopeError as error:
        said = str(error)
    except BaseException as error:
        raise AssertionError(f"{case}: {read.__name__} gives {error!r}") from error
    assert str(path) in said, f"{case}: the file is not named in {said}"
    return None


def use(artifact: Artifact, path: Path) -> None:
    """What is done with an artefact, and saving it again, which changes nothing."""
    assert "\n" not in repr(artifact)
    tensors, header = artifact.to_parts()
    write_parts(path, tensors, read_header(save(artifact, path)) if len(tensors) > 6 else {"kind": artifact.kind} | header)
    if isinstance(artifact, NeuronScores):
        if artifact.sites.layers:
            artifact.by_layer()
        assert artifact.top(1).count == 1
        artifact.q_values()
    if isinstance(artifact, LayerScores):
        artifact.top(1)
        assert len(artifact.to_frame()) == len(artifact.layers)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        each.dtype == other[name].dtype and each.shape == other[name].shape and each.numpy().tobytes() == other[name].numpy().tobytes()
        if each.dtype != torch.bfloat16
        else torch.equal(each, other[name])
        for name, each in one.items()
    )


def places(value: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """All fields of a header at any depth: path, what they are in, and under which key."""
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [each for key, inner in pairs for each in ((f"{path}{key}", value, key), *places(inner, f"{path}{key}."))]


def kind_of(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
