"""Command lines made from the application itself: every option of every command with every bad value of its kind.

A line with one bad value must end in one line and exit status 2, without an exception, and without a file made or changed. The seed
comes from the clock and is printed; FUZZ_SEED repeats a run.
"""

import functools
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import neuroscope as ns
from neuroscope.cli import main
from neuroscope.cli.app import app

SEED = int(os.environ.get("FUZZ_SEED") or time.time_ns() % 2**32)
SHORT = ["--num-inference-steps", "1", "-q"]
#: For each command a line that is right.
RIGHT = {
    "sites": [],
    "doctor": [],
    "show": ["s.safetensors"],
    "plot": ["s.safetensors", "-o", "p.png"],
    "record": ["--style", "stipple", "--layer", "12", "-q", "-o", "new.safetensors"],
    "rank": ["r.safetensors", "-o", "new.safetensors"],
    "mask": ["r.safetensors", "-o", "new.safetensors"],
    "localize": ["--style", "stipple", "--pairs", "1", "--seeds", "1", *SHORT, "-o", "new.safetensors"],
    "edit": ["--style", "stipple", "--layer", "12", "-o", "new.safetensors"],
    "export": ["e.safetensors", "-o", "new"],
    "generate": ["--prompt", "a red star", *SHORT, "-o", "new"],
    "evaluate": ["--prompt", "a red star", "--read", "object=star", "--seeds", "1", *SHORT, "-o", "new.csv"],
    "dose": ["s.safetensors", "--prompt", "x", "--read", "object=star", "--seeds", "1", *SHORT, "-o", "new.safetensors"],
    "report": [".", "-o", "new.html"],
    "merge": ["l.jsonl", "-o", "new"],
    "atlas": ["--style", "stipple", "--pairs", "1", *SHORT, "-o", "new.safetensors"],
    "demo": ["-o", "new", "-q"],
}
LONG = {"demo"}  # right lines that take minutes

NO_NUMBERS = ["x", "", "nan", "1e3x", "0x10", "--", "½", "1,5", "\udcff"]
NO_WHOLE = [*NO_NUMBERS, "1.5", "inf", str(2**70), str(-(2**70)), "9" * 5000]
NO_FINITE = [*NO_NUMBERS, "inf", "-inf", "1e400", "NaN", "-Infinity"]
NO_TEXT = ["", "  ", "\udcff"]
NO_CHOICE = ["nope", "\udcff", "0"]
NO_INPUT = ["none.file", "folder", "text.txt", "n" * 300, "none/none"]
NO_OUTPUT = ["nowhere/x.png", "folder", "n" * 300 + ".png", "text.txt/x.png"]
BAD: dict[str, list[str]] = {
    "model": ["testbed:clip", "testbed:nope", "testbed:", "", "no/such/model", "testbed:sd1/none", "folder", "text.txt", "\udcff"],
    "layer": ["99", "-1"],
    "fill": ["nan", "inf", "1e400", "x", "", "\udcff"],
    "read": ["star", "style=", "=x", "nope=x", "style=nope", "", "\udcff"],
    "method": [
        "nope",
        "",
        "\udcff",
        "LocoGen(",
        "LocoGen(2)",
        "LocoGen(nope=1)",
        "LocoGen(window=print())",
        "LocoGen(**{})",
        "ns.LocoGen()",
        "(" * 3000,
    ],
    "metric": ["nope", "", "\udcff", "ClipScore(2)", "Reader()", "Reader(attribute='nope')", "Flipped(from_share=2)", "ClipScore(text='')"],
    "name": ["nope", "", "\udcff"],
    "prompt": ["\udcff"],
    "unrelated": ["\udcff"],
    "preserve": ["\udcff"],
    "output_dir": ["text.txt", "text.txt/x", "n" * 300],
    "strength": [],
    "seed": [],
    "resume": ["nowhere/x.jsonl", "text.txt", "n" * 300],
    "shard": ["0/2", "3/2", "1", "x/y", ""],
    "executor": ["nope", "", "\udcff"],
    "ledgers": ["none.jsonl", "text.txt", "n" * 300],
    "run": ["none.file", "folder", "text.txt", "n" * 300],
}
CHOICES = {"role", "token", "per", "share", "rows", "lora_format", "dtype"}
OUTPUTS = {"output"}


@dataclass(frozen=True)
class Line:
    """A command line with one bad value, and what is bad."""

    arguments: tuple[str, ...]
    bad: str

    def __str__(self) -> str:
        return f"{' '.join(map(ascii, self.arguments))[:300]} (bad: {self.bad})"


def commands(command: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of the application by name, but for `push`, which needs the hub."""
    command = typer.main.get_command(app) if command is None else command
    for each, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {each}".strip())
    if not hasattr(command, "commands") and name != "push":
        yield name, command


def values_of(param: Any) -> list[str]:
    """Bad values for a parameter, by its type and name."""
    kind = str(param.type_descriptor.annotation)
    own = BAD.get(param.name, [])
    if "int" in kind:
        return [*NO_WHOLE, *(own if param.name in BAD else ["0", "-3"])]
    if "float" in kind:
        return [*NO_FINITE, *(own if param.name in BAD else ["-1"])]
    if "Path" in kind:
        return own or (NO_OUTPUT if param.name in OUTPUTS else NO_INPUT)
    if param.name in CHOICES:
        return NO_CHOICE
    return own or NO_TEXT


def lines() -> Iterator[Line]:
    """Every command × every parameter × every bad value, and lines whose form is wrong."""
    for name, command in commands():
        if name == "testbed list":
            yield Line((*name.split(), "--nope"), "an option that is none")
            continue
        start = name.split()
        for wrong in (["--nope"], ["--nope", "x"], [""], ["extra", "extra"]):
            if name != "export" or wrong[0].startswith("--"):
                yield Line((*start, *RIGHT[name], *wrong), f"{wrong} at the end")
        for param in command.params:
            if getattr(param, "is_flag", False):
                yield Line((*start, *RIGHT[name], f"{max(param.opts, key=len)}=x"), f"a value for the flag {param.name}")
                continue
            for value in values_of(param):
                yield Line((*start, *_with(param, RIGHT[name], value)), f"{param.name}={value!a:.40}")
            if param.param_type_name == "option":
                yield Line((*start, *_without(param, RIGHT[name]), max(param.opts, key=len)), f"{param.name} without a value")


def _without(param: Any, right: list[str]) -> list[str]:
    """A line without an option and its value, or without its first argument."""
    if param.param_type_name == "argument":
        return right[1:]
    places = [number for number, each in enumerate(right) if each in param.opts]
    return [each for number, each in enumerate(right) if not any(number in (place, place + 1) for place in places)]


def _with(param: Any, right: list[str], value: str) -> list[str]:
    if param.param_type_name == "argument":
        return [value, *right[1:]]
    flag = max(param.opts, key=len)
    return [*_without(param, right), f"{flag}={value}"]


def garbled(rng: random.Random) -> Line:
    """A line whose number is garbage: characters drawn at random."""
    numeric = [
        (name, param)
        for name, command in commands()
        for param in command.params
        if any(each in str(getattr(param, "type_descriptor", param).annotation) for each in ("int", "float"))
    ]
    name, param = rng.choice(numeric)
    while True:
        value = "".join(rng.choices("0123456789+-.eExX_ naif∞½²٣\t", k=rng.randint(1, 8)))
        if not _is_number(value):
            return Line((*name.split(), *_with(param, RIGHT[name], value)), f"{param.name}={value!a}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


load = functools.cache(ns.testbed.load)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Results of the bundled model, as commands take them."""
    folder = tmp_path_factory.mktemp("fuzz")
    graph = ns.HookGraph(load("sd1"))
    concept = ns.Concept.style("stipple", prompts="testbed")
    recording = ns.record(graph, concept, graph.sites.where(layer=12, text_only=True), quiet=True)
    scores = ns.score(recording, ns.Welch())
    made = {"r": recording, "s": scores, "m": ns.NeuronMask(scores.top(5)), "e": ns.edit(graph, concept, ns.LocoEdit(), 12)}
    for name, each in made.items():
        ns.save(each, folder / f"{name}.safetensors")
    (folder / "folder").mkdir()
    options = {"num_inference_steps": 1, "quiet": True, "output": folder / "l.jsonl"}
    ns.evaluate(graph, {}, ["a red star"], [0], ns.testbed.Reader("object", "star"), controls=False, **options)
    (folder / "text.txt").write_text("no result of anything\n")
    return folder


@pytest.fixture
def run(saved, monkeypatch, capsys, untyped):
    """Runs a line in the folder of results; returns its status, its words on standard error, and what it changed."""
    monkeypatch.chdir(saved)
    monkeypatch.setattr(ns.testbed, "load", load)

    def contents() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in saved.rglob("*") if path.is_file()}

    def run(arguments: tuple[str, ...]) -> tuple[Any, str, set[Path]]:
        before = contents()
        try:
            main(list(arguments))
        except SystemExit as stopped:
            status: Any = stopped.code or 0
        except Exception as error:
            status = f"{type(error).__name__}: {error}"
        after = contents()
        return status, capsys.readouterr().err, {path for path in before | after if before.get(path) != after.get(path)}

    return run


def check(run: Any, chosen: list[Line]) -> None:
    """Runs lines and gathers all that were not refused as they should be."""
    sys.__stdout__.write(f"FUZZ_SEED={SEED}: {len(chosen)} command lines\n")
    found = []
    for line in chosen:
        status, said, changed = run(line.arguments)
        if status != 2 or changed or said.count("\n") != 1 or not said.startswith("neuroscope: "):
            found.append(f"{line}: status {status}, changed {sorted(path.name for path in changed)}, said {said[:300]!a}")
    assert not found, f"FUZZ_SEED={SEED}: {len(found)} of {len(chosen)} lines were not refused:\n" + "\n".join(found)


def test_some_lines_with_a_bad_value_are_refused(run):
    rng = random.Random(SEED)
    check(run, [*rng.sample(list(lines()), 30), *(garbled(rng) for _ in range(10))])


@pytest.mark.fuzz
def test_every_line_with_a_bad_value_is_refused(run):
    rng = random.Random(SEED)
    every = list(lines())
    assert len(every) >= 400
    check(run, [*rng.sample(every, len(every)), *(garbled(rng) for _ in range(400))])


@pytest.mark.fuzz
@pytest.mark.parametrize("name", sorted(set(RIGHT) - LONG))
def test_the_lines_are_right_without_the_bad_value(name, run, saved):
    status, said, changed = run((*name.split(), *RIGHT[name]))
    assert status == 0, said
    for path in changed:
        path.unlink()


def test_every_command_has_a_line():
    assert {name for name, _ in commands()} == {*RIGHT, "testbed list"}
