"""Ledgers on the command line: --resume, --shard, merge and show."""

import json
import re

import pytest

from neuroscope.cli import main

MADE = ("--num-inference-steps", 1, "--batch-size", 8, "--quiet")
LAYERS = ("localize", "--style", "stipple", "--method", "LocoGen(window=8)", "--pairs", 1, "--seeds", 1, *MADE)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, untyped):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs the command line; gives its status, and what it printed and complained."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(each) for each in arguments])
        out, error = capsys.readouterr()
        return stopped.value.code or 0, out, error

    return run


def test_shards_are_made_merged_shown_and_become_the_table(run):
    whole = run(*LAYERS, "--json", "--resume", "alone", "-o", "alone.safetensors")
    for number in (1, 2):
        code, out, _ = run(*LAYERS, "--json", "--shard", f"{number}/2", "-o", f"part-{number}")
        assert code == 0
        assert json.loads(out) | {"tasks": 0, "images": 0} == {"shard": f"{number}/2", "tasks": 0, "images": 0, "output": f"part-{number}"}
    code, out, _ = run("merge", "part-1", "part-2", "-o", "whole", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["output"] == "whole"
    assert [(each["done"], each["missing"]) for each in facts["runs"]] == [(facts["rows"], {})]
    code, out, _ = run("show", "whole", "--json")
    assert json.loads(out) == {name: value for name, value in facts.items() if name != "output"}
    assert sum(len(each["keys"]) for each in facts["conditions"]) == facts["rows"]
    code, out, _ = run("show", "part-1")
    assert re.search(
        r"stipple: LocoGen\(window=8\), LatentShare\(\)\n  \d+ of \d+ images done, \d+ missing, 0 of them failed; \d+ NFE", out
    )
    merged = run(*LAYERS, "--json", "--resume", "whole", "-o", "merged.safetensors")
    assert json.loads(merged[1])["layers"] == json.loads(whole[1])["layers"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("--shard", "1/2", "--resume", "a", "-o", "b"),
            "--resume would be ignored: a shard's ledger is its --output, from which it goes on",
        ),
        (("--shard", "3/2", "-o", "b"), "number=3 "),
        (("--shard", "half", "-o", "b"), "'half' is no shard; write its number and how many there are, such as 3/16"),
        (("--resume-anyway", "-o", "b"), "--resume-anyway would be ignored: it is for the ledger of --resume; give that, or leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, folder, given, said):
    code, _, error = run(*LAYERS, *given)
    assert code == 2
    assert said in error
    assert list(folder.iterdir()) == []


def test_a_ranking_in_shards_needs_an_output(run):
    code, _, error = run("rank", "--style", "stipple", "--method", "NeuronAblation()", "--shard", "1/2", *MADE)
    assert (code, error) == (2, "neuroscope: --shard needs --output, the folder or URL of the shard's ledger\n")


def test_a_search_is_refused_with_its_reason(run, folder):
    code, _, error = run("localize", "--style", "stipple", "--pairs", 1, "--seeds", 1, *MADE, "--shard", "1/2", "-o", "part")
    assert code == 2
    assert "cannot be made in shards: with search='auto' what it tries next depends on the scores of earlier images" in error
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("merge", "none", "-o", "c"), "none holds no ledger, no file in it ends in .rows"),
        (("show", "memory://none"), "memory://none holds no ledger"),
        (("show", "empty", "--rows", 3), "--rows would be ignored: empty is a ledger, which has no table"),
    ],
)
def test_what_is_no_ledger_is_refused(run, folder, given, said):
    (folder / "empty").mkdir()
    code, _, error = run(*given)
    assert code == 2
    assert said in error
