"""The command line, in process, on the bundled model."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import neuroscope as ns


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recording of layer 12 of the bundled model, and a mask of its ten strongest neurons."""
    folder = tmp_path_factory.mktemp("recorded")
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    concept = ns.Concept.style("stipple", prompts="testbed")
    recording = ns.record(graph, concept, graph.sites.where(layer=12, text_only=True), quiet=True)
    ns.save(recording, folder / "recording.safetensors")
    mask = ns.NeuronMask(ns.score(recording, ns.Welch()).top(10), fill=recording.mean("absent"))
    ns.save(mask, folder / "mask.safetensors")
    return folder


def test_the_main_job_runs_as_files_and_pipes(run, tmp_path):
    assert run("record", "--style", "stipple", "--layer", 12, "-q", "-o", "r.safetensors")[0] == 0
    code, out, _ = run("rank", "r.safetensors", "--top", 3, "--json", "-o", "s.safetensors")
    ranked = json.loads(out)
    assert code == 0
    assert [row["rank"] for row in ranked] == [1, 2, 3]
    assert set(ranked[0]) == {"site", "layer", "role", "neuron", "score", "stderr", "p_value", "q_value", "rank"}
    assert run("mask", "r.safetensors", "--top", 5, "-o", "m.safetensors")[0] == 0
    assert ns.load("m.safetensors").neurons.count == 5
    assert run("plot", "s.safetensors", "-o", "p.png")[0] == 0
    steps = ("--num-inference-steps", 2, "-q")
    assert run("generate", "--prompt", "a red star", "--apply", "m.safetensors", "-o", "out", *steps)[0] == 0
    evaluate = (
        "evaluate",
        "--apply",
        "m.safetensors",
        "--prompt",
        "a red star",
        "--read",
        "object=star",
        "--seeds",
        1,
        "-o",
        "t.csv",
        "--json",
    )
    code, out, _ = run(*evaluate, *steps)
    assert code == 0
    assert [row["intervention"] for row in json.loads(out)] == ["none", "m", "m: random"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "out", "p.png", "r.safetensors", "s.safetensors", "t.csv"]


def test_show_says_what_files_hold(run, recorded):
    assert "24 present, 24 absent prompts" in run("show", recorded / "recording.safetensors")[1]
    code, out, _ = run("show", recorded / "mask.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["provenance"]["concept"] == "stipple"


def test_sites_and_doctor_describe_the_model(run):
    code, out, _ = run("sites", "--role", "value", "--json")
    assert code == 0
    assert [row["layer"] for row in json.loads(out)] == list(range(16))
    code, out, _ = run("doctor", "--json")
    assert code == 0
    assert {row["state"] for row in json.loads(out)} == {"fine"}


def test_a_model_folder_is_a_model(run):
    assert run("sites", "--model", ns.testbed.path("sd1"), "--layer", 3)[0] == 0


def test_a_broken_or_foreign_file_is_one_line_and_status_2(run, recorded, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes((recorded / "mask.safetensors").read_bytes()[:200])
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    expected = {
        "cut.safetensors": "is damaged or not a safetensors file",
        "foreign.safetensors": "that neuroscope did not write",
        "none.safetensors": "there is no file",
    }
    for name, words in expected.items():
        code, _, error = run("rank", name)
        assert code == 2
        assert error.count("\n") == 1, error
        assert words in error


def test_a_mask_is_refused_where_a_recording_is_needed(run, recorded):
    code, _, error = run("rank", recorded / "mask.safetensors")
    assert (code, error.count("\n")) == (2, 1)
    assert "holds a neuron-mask, but a recording is needed" in error


def test_a_mask_for_another_model_names_the_sites_before_any_image(run, recorded, tmp_path):
    neurons = ns.load(recorded / "mask.safetensors").neurons
    wide = ns.Neurons(neurons, dict.fromkeys(neurons, 640))
    ns.save(ns.NeuronMask(wide), tmp_path / "wide.safetensors")
    code, _, error = run("generate", "--prompt", "a red star", "--apply", "wide.safetensors", "-o", "out", "-q")
    assert (code, error.count("\n")) == (2, 1)
    assert "attn2.to_v (640 neurons in the mask, 96 in the model)" in error
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("record", "--style", "stipple", "--layer", 16, "-o", "x.safetensors"), "layer 16 is unknown; these sites have layers 0 to 15"),
        (("record", "--style", "stipple", "--role", "valu", "-o", "x.safetensors"), "did you mean 'value'?"),
        (("record", "--style", "stipple", "--token", "lst", "-o", "x.safetensors"), "did you mean 'last'?"),
        (("record", "-o", "x.safetensors"), "name one concept by --style"),
        (("record", "--style", "a", "--object", "b", "-o", "x.safetensors"), "not --style and --object"),
        (("record", "--style", "stipple", "-o", "nowhere/x.safetensors"), "there is no folder nowhere"),
        (("record", "--concept", "none.toml", "-o", "x.safetensors"), "cannot be read: No such file"),
        (("sites", "--model", "testbed:sd2"), "bundled model 'sd2' is unknown"),
        (("sites", "--model", "no/such-folder/model"), "cannot be loaded"),
    ],
)
def test_mistakes_are_answered_with_one_line_and_status_2(run, arguments, words):
    code, out, error = run(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert words in error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "x"\npresent = []\nabsent = []', "has no present prompt"),
        ('name = "x"\npresent = ["a", "b"]\nabsent = ["c"]', "2 present and 1 absent prompts; they are pairs"),
        ('name = "x"\npresnt = ["a"]\nabsent = ["c"]', "did you mean 'present'?"),
        ("name = ", "is not TOML"),
    ],
)
def test_a_bad_concept_file_is_refused(run, tmp_path, text, words):
    (tmp_path / "concept.toml").write_text(text)
    code, _, error = run("record", "--concept", "concept.toml", "-o", "x.safetensors")
    assert (code, error.count("\n")) == (2, 1)
    assert words in error


def test_an_unknown_method_is_refused_with_the_near_name(run, recorded):
    code, _, error = run("rank", recorded / "recording.safetensors", "--method", "welsh")
    assert code == 2
    assert "did you mean 'Welch'?" in error


def test_a_prompt_that_is_too_long_warns_of_the_lost_words(run):
    prompt = "a red star " * 9 + "in the style of stipple"
    _, _, error = run("generate", "--prompt", prompt, "--num-inference-steps", 1, "-q", "-o", "out")
    lost = " ".join(prompt.split()[24 - 2 :])  # 24 tokens, two of them special; each word is one token
    assert f"it loses {lost!r}" in error


def test_a_folder_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = run("generate", "--prompt", "a red star", "-o", "file/out")
    assert (code, error.count("\n")) == (2, 1)
    assert "cannot be written: Not a directory" in error


def test_the_console_script_is_installed():
    finished = subprocess.run([sys.executable, "-m", "neuroscope", "testbed", "list"], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["testbed:clip", "testbed:pixart", "testbed:pixart-natural", "testbed:sd1", "testbed:sd1-natural"]
