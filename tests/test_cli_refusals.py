"""What the command line refuses: nonsense, contradictions, what would be ignored, and outputs that are inputs; and how it ends."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import neuroscope as ns
from neuroscope.cli import main
from neuroscope.cli.opening import distinct_names
from neuroscope.testbed import path as model_folder

SHORT = ("--num-inference-steps", 1, "-q")


#: The bundled models, each loaded once.
load = functools.cache(ns.testbed.load)


@pytest.fixture
def run(run, monkeypatch):
    monkeypatch.setattr(ns.testbed, "load", load)
    return run


@pytest.fixture
def refused(run, tmp_path):
    """Runs a command that must be refused, with one line and no file made or changed; returns the line."""

    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refused(*arguments):
        before = contents()
        code, out, error = run(*arguments)
        assert (code, out, error.count("\n")) == (2, "", 1), (arguments, code, out, error)
        assert error.startswith("neuroscope: ")
        assert contents() == before
        return error

    return refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A recording, scores, layers' scores and a mask of the bundled model."""
    folder = tmp_path_factory.mktemp("saved")
    graph = ns.HookGraph(load("sd1"))
    concept = ns.Concept.style("stipple", prompts="testbed")
    recording = ns.record(graph, concept, graph.sites.where(layer=12, text_only=True), quiet=True)
    scores = ns.score(recording, ns.Welch())
    found = {"r": recording, "s": scores, "l": scores.by_layer(), "m": ns.NeuronMask(scores.top(5), fill=recording.mean("absent"))}
    for name, each in found.items():
        ns.save(each, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def files(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


STIPPLE = ("--style", "stipple")
GENERATE = ("generate", "--prompt", "a red star", "-o", "out")
EVALUATE = ("evaluate", "--prompt", "a red star", "--read", "object=star", "-o", "t.csv")
LOCALIZE = ("localize", *STIPPLE, "-o", "x.safetensors")
RECORD = ("record", "-o", "x.safetensors")
EDIT = ("edit", *STIPPLE, "--layer", 12, "-o", "x.safetensors")
MASK = ("mask", "r.safetensors", "-o", "x.safetensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*GENERATE, "--num-inference-steps", 0), "--num-inference-steps=0 is not allowed; give 1 to 100000"),
        ((*GENERATE, "--num-inference-steps", -3), "--num-inference-steps=-3 is not allowed"),
        ((*GENERATE, "--num-inference-steps", 1000), "num_inference_steps=1000 is not allowed; give 1 to 999"),
        ((*GENERATE, "--num-inference-steps", 10**7), "--num-inference-steps=10000000 is not allowed"),
        ((*GENERATE, "--seed", 2**70), "--seed=1180591620717411303424 is not allowed; give -9223372036854775808 to 18446744073709551615"),
        ((*GENERATE, "--seed", 2**64 - 1, "--count", 2), "a seed=18446744073709551616 is not allowed"),
        ((*GENERATE, "--count", 0), "--count=0 is not allowed; give 1 to 100000"),
        ((*GENERATE, "--count", -1), "--count=-1 is not allowed"),
        ((*GENERATE, "--height", -8), "--height=-8 is not allowed; give 1 to 4096"),
        ((*GENERATE, "--height", 64), "height=64 is given without width"),
        ((*GENERATE, "--width", 64), "width=64 is given without height"),
        ((*GENERATE, "--height", 7, "--width", 64), "height=7 is not allowed; give 8 to 4096"),
        ((*GENERATE, "--height", 9_999_999, "--width", 9_999_999), "--height=9999999 is not allowed"),
        ((*GENERATE, "--guidance-scale", "inf"), "--guidance-scale=inf is not finite"),
        ((*GENERATE, "--guidance-scale", "nan"), "--guidance-scale=nan is not finite"),
        ((*GENERATE, "--guidance-scale", -1), "--guidance-scale=-1.0 is not allowed; give at least 0"),
        ((*GENERATE, "--prompt", "a red star"), "'a red star' is given twice among the values of --prompt; give each once"),
        ((*GENERATE, "--prompt", "\udcff"), "holds a character that is none"),
        (
            (*GENERATE, "--apply", "m.safetensors", "--apply", "./m.safetensors"),
            "--apply m.safetensors is given twice",
        ),
        ((*GENERATE, "--image", "none.png"), "none.png is no image that can be read"),
        ((*GENERATE, "--image", "m.safetensors"), "m.safetensors is no image that can be read"),
        ((*EVALUATE, "--style", "stipple"), "--style would be ignored: the prompts are given by --prompt; leave it out"),
        ((*EVALUATE, "--clip", ""), "text is empty; give a string, such as 'the style of Van Gogh'"),
        ((*EVALUATE, "--seeds", 0), "--seeds=0 is not allowed"),
        ((*EVALUATE, "--resume", "t.csv"), "t.csv is an input and would be overwritten by the output"),
        ((*EVALUATE, "--apply", "m.safetensors", "--resume", "m.safetensors"), "m.safetensors is an input"),
        (("evaluate", "--prompt", "a", "-o", "t.csv"), "there is nothing to score by; give --clip TEXT, or --read ATTRIBUTE=VALUE"),
        (("evaluate", "--clip", "x", "-o", "t.csv"), "name one concept by --style"),
        ((*LOCALIZE, "--pairs", 0), "--pairs=0 is not allowed"),
        ((*LOCALIZE, "--pairs", 30), "--pairs=30 are more than the concept's 24; give at most these"),
        ((*LOCALIZE, "--share", "image", "--clip", "x"), "--share would be ignored: the metric is given by --clip"),
        ((*LOCALIZE, "--clip", ""), "--clip is empty"),
        ((*LOCALIZE, "--clip", "x", "--read", "style=stipple"), "give one of --clip and --read, not both"),
        ((*LOCALIZE, "--method", "CausalTracing(noise=nan)"), "noise of CausalTracing is no plain value; give a number"),
        ((*LOCALIZE, "--method", "CausalTracing(noise=1e999)"), "noise=inf is not finite"),
        ((*LOCALIZE, "--method", "LocoGen(enough=1e999)"), "enough=inf is not finite"),
        ((*LOCALIZE, "--method", "LocoGen(budget=-1e999, search='auto')"), "budget=-inf is not finite"),
        ((*LOCALIZE, "--method", "LocoGen(noise=1)"), "'noise' is no option of LocoGen; it has window"),
        (
            (*LOCALIZE, "--method", "TeacherForced(steps=99)", "--num-inference-steps", 2, "-q"),
            "steps=99 are more than the 2 steps of the run; give at most these",
        ),
        (
            (*LOCALIZE, "--method", "AttentionContribution(fidelity=99)", "--num-inference-steps", 2, "-q"),
            "fidelity=99 are more than the model's 16 layers; give at most these",
        ),
        ((*RECORD, *STIPPLE, "--answer", "x"), "--answer would be ignored: it is a --fact's new answer"),
        ((*RECORD, "--fact", "the emblem of astoria", "--answer", ""), "--answer is empty"),
        ((*RECORD, "--style", ""), "--style is empty"),
        ((*RECORD, *STIPPLE, "--layer", 12, "--num-inference-steps", 2), "--num-inference-steps would be ignored: these sites depend on"),
        ((*RECORD, *STIPPLE, "--layer", 12, "--seed", 0), "--seed would be ignored: these sites depend on the prompt alone"),
        ((*RECORD, *STIPPLE, "--layer", 12, "--layer", 12), "12 is given twice among the values of --layer"),
        ((*EDIT, "--ridge", "nan"), "--ridge=nan is not finite"),
        ((*EDIT, "--ridge", "inf"), "--ridge=inf is not finite"),
        ((*EDIT, "--ridge", -1), "--ridge=-1.0 is not allowed; give at least 0"),
        (("rank", "r.safetensors", "--top", 0), "--top=0 is not allowed; give 1 to 100000"),
        (("rank", "r.safetensors", "--top", -3), "--top=-3 is not allowed"),
        (("rank", "r.safetensors", "-o", "r.safetensors"), "r.safetensors is an input and would be overwritten by the output"),
        (("rank", "r.safetensors", "-o", "n" * 300), "cannot be written: File name too long"),
        ((*MASK, "--fill", "nan"), "--fill=nan is not finite"),
        ((*MASK, "--fill", "1e400"), "--fill=inf is not finite"),
        ((*MASK, "--fill", "x"), "--fill 'x' is neither absent, present nor a number"),
        ((*MASK, "--strength", "nan"), "--strength=nan is not finite"),
        ((*MASK, "--strength", "inf"), "--strength=inf is not finite"),
        (("mask", "r.safetensors", "-o", "r.safetensors"), "r.safetensors is an input"),
        ((*MASK, "--rows", "both"), "rows 'both' is unknown; choose one of conditional, all"),
        (("mask", "s.safetensors", "--fill", 0, "--method", "Auroc", "-o", "x"), "--method would be ignored: s.safetensors holds scores"),
        (("show", "s.safetensors", "--rows", -3), "--rows=-3 is not allowed"),
        (("show", "m.safetensors", "--rows", 3), "--rows would be ignored: m.safetensors holds a neuron-mask"),
        (("show", "s.safetensors", "--rows", 3, "--json"), "--rows would be ignored: --json prints the file's header"),
        (("plot", "s.safetensors", "--grid"), "--grid would be ignored: it does not belong to this plot of a neuron-scores"),
        (("plot", "s.safetensors", "--images"), "--images would be ignored"),
        (("plot", "s.safetensors", "--method", "Welch"), "--method would be ignored"),
        (("plot", "s.safetensors", "--layers", "--top", 3), "--top would be ignored"),
        (("plot", "r.safetensors", "--method", "nope"), "method 'nope' is unknown"),
        (("plot", "l.safetensors", "--layers"), "--layers would be ignored: it does not belong to this plot of a layer-scores"),
        (("plot", "l.safetensors", "--top", 3), "--top would be ignored"),
        (("plot", "l.safetensors", "--grid", "--images"), "--grid would be ignored"),
        (("plot", "s.safetensors", "-o", "p.xyz"), "p.xyz is no file that a plot can be written to; end its name in .png, .pdf, .svg"),
        (("report", ".", "-o", "m.safetensors"), "m.safetensors is an input and would be overwritten by the output"),
        (("sites", "--config", "c.json", "--model", "testbed:sd1"), "--model would be ignored: the sites are those of --config"),
        (
            ("sites", "--model", "testbed:clip"),
            "testbed:clip is no pipeline but what metrics read images with",
        ),
        (("doctor", "--model", "testbed:clip"), "testbed:clip is no pipeline"),
        (("demo", "--style", "plain"), "style 'plain' is unknown; choose one of stipple"),
        (("--nope",), "No such option: --nope; see `neuroscope --help`"),
        (("mask", "-o", "m"), "Missing argument 'file'; see `neuroscope mask --help`"),
        (("rank", "r.safetensors", "--top", "x"), "Invalid value for '--top'"),
        (("export", "m.safetensors", "m.safetensors"), "m.safetensors is given twice"),
    ],
)
def test_nonsense_is_refused_in_one_line(refused, files, arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "x"\npresent = [1, 2]\nabsent = ["a", "b"]', "present prompts are a list of strings, and 1 is none"),
        ('name = "x"\npresent = 5\nabsent = ["a"]', "present prompts are a list of strings, not 5"),
        ('name = "x"\npresent = [true]\nabsent = ["a"]', "and True is none"),
        ('name = "x"\npresent = [["a"]]\nabsent = ["b"]', r"and ['a'] is none"),
        ('name = "x"\npresent = [1979-05-27]\nabsent = ["b"]', "datetime.date(1979, 5, 27) is none"),
        ('name = "x"\nabsent = ["b"]\n[present]\na = "x"', "present prompts are a list of strings, not {'a': 'x'}; their order pairs them"),
        ('name = "x"\npresent = ["a"]\nabsent = ["b"]\ntest = [1]', "test prompts are a list of strings, and 1 is none"),
        ('name = "x"\npresent = ["a"]\nabsent = ["a"]', "pair 0 of concept 'x' is 'a' in both arms, so nothing differs"),
        ('name = "x"\npresent = ["a", "b"]\nabsent = ["b", "a"]', "prompt 'a' of concept 'x' stands in both arms"),
        ('name = "x"\npresent = ["a", "b"]\nabsent = ["c", "a"]', "prompt 'a' of concept 'x' stands in both arms"),
        ('name = "x"\npresent = [""]\nabsent = ["b"]', "one of the present prompts is empty"),
        ('name = "x"\npresent = ["a"]\nabsent = ["  "]', "one of the absent prompts is empty"),
        ('name = 3\npresent = ["a"]\nabsent = ["b"]', "the concept's name is 3, which is no text"),
        ('name = ["x"]\npresent = ["a"]\nabsent = ["b"]', "the concept's name is ['x'], which is no text"),
        ('name = " "\npresent = ["a"]\nabsent = ["b"]', "the concept's name is empty"),
        ("name = " + "[" * 100_000, "c.toml is nested too deeply"),
        ("name = " + "1" * 5_000, "c.toml is not TOML"),
    ],
)
def test_concept_files_of_other_kinds_are_refused(refused, tmp_path, text, words):
    (tmp_path / "c.toml").write_text(text)
    assert words in refused(*RECORD, "--concept", "c.toml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": 3}, "the config is of a 3, which is no model of diffusers"),
        ({"_class_name": "nn"}, "the config is of a 'nn', which is no model of diffusers"),
        ({"sample_size": 0}, "sample_size=0 is not allowed; give 1 or more"),
        ({"sample_size": [8, 0]}, "sample_size=0 is not allowed"),
        ({"sample_size": "x"}, "sample_size='x' is no whole number"),
        ({"cross_attention_dim": -5}, "the config makes no UNet2DConditionModel: RuntimeError"),
        ({"block_out_channels": [3]}, "the config makes no UNet2DConditionModel: ValueError"),
        ({"attention_head_dim": 0}, "the config makes no UNet2DConditionModel: ZeroDivisionError"),
        ({"in_channels": 0}, "this UNet2DConditionModel does not run with what its family (stable-diffusion-unet) is given"),
        ("[" * 100_000, "the config c.json is not JSON"),
        ('{"sample_size": ' + "1" * 5_000 + "}", "the config c.json is not JSON"),
        ("[1]", "the config c.json holds no settings"),
    ],
)
def test_hostile_configs_are_refused(refused, tmp_path, change, words):
    config = json.loads((model_folder("sd1") / "unet" / "config.json").read_text())
    (tmp_path / "c.json").write_text(change if isinstance(change, str) else json.dumps(config | change))
    assert words in refused("sites", "--config", "c.json")


def test_a_model_folder_that_is_none_is_refused(refused, tmp_path):
    (tmp_path / "model").mkdir()
    assert "the model 'model' cannot be loaded" in refused("sites", "--model", "model")
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": 3}')
    assert "the model 'model' cannot be loaded" in refused("sites", "--model", "model")


def test_folders_in_a_run_are_passed_over_and_broken_tables_refused(run, refused, files):
    (files / "x.csv").mkdir()
    (files / "x.png").mkdir()
    assert run("report", ".")[0] == 0
    head = "intervention,prompt,seed,metric,score\n"
    for row, words in (
        ("a,b,x,m,1", "seeds that are no numbers"),
        ("a,b,,m,1", "seeds that are no numbers"),
        ("a,b,inf,m,1", "missing or infinite"),
    ):
        (files / "t.csv").write_text(head + row)
        assert words in refused("report", ".")
    (files / "t.csv").write_text(head + "a,b,1,m,inf")
    assert "missing or infinite" in refused("report", ".")


def test_files_of_one_stem_are_told_apart_by_path(run, files):
    for folder in ("a", "b"):
        (files / folder).mkdir()
        (files / folder / "m.safetensors").write_bytes((files / "m.safetensors").read_bytes())
    code, out, _ = run(*EVALUATE, "--seeds", 1, "--json", *SHORT, "--apply", "a/m.safetensors", "--apply", "b/m.safetensors")
    assert code == 0
    assert [row["intervention"] for row in json.loads(out)] == ["none", "a/m", "a/m: random", "b/m", "b/m: random"]


def test_names_are_as_short_as_they_can_be(tmp_path):
    paths = [tmp_path / each for each in ("a/x/m.st", "b/x/m.st", "n.st", "c/k.st", "c/k.safetensors")]
    assert distinct_names(paths[:3]) == ["a/x/m", "b/x/m", "n"]
    assert distinct_names(paths[3:]) == ["k.st", "k.safetensors"]
    assert distinct_names([]) == []


def test_an_image_is_not_overwritten_by_what_is_made_of_it(refused, tmp_path):
    (tmp_path / "out").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "out" / "a-red-star-seed0.png")
    assert "out/a-red-star-seed0.png is an input and would be overwritten" in refused(*GENERATE, "--image", "out/a-red-star-seed0.png")


def test_the_version_is_printed_and_groups_of_commands_print_their_help(run):
    assert run("--version") == (0, "neuroscope 0.1.0\n", "")
    for group in ((), ("testbed",)):
        code, out, error = run(*group)
        assert (code, error) == (2, "")
        assert "Commands" in out


def test_a_full_standard_output_is_one_line(capfd, monkeypatch, untyped):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stopped:
            main(["testbed", "list"])
    assert stopped.value.code == 1
    assert capfd.readouterr().err == "neuroscope: standard output cannot be written: No space left on device\n"


def test_a_closed_standard_output_is_quiet(capfd, monkeypatch, untyped):
    reader, writer = os.pipe()
    os.close(reader)
    closed = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(SystemExit) as stopped:
        main(["testbed", "list"])
    with contextlib.suppress(BrokenPipeError):  # of what was not written
        closed.close()
    assert stopped.value.code == 1
    assert capfd.readouterr().err == ""


def test_an_interrupt_of_a_command_is_one_line_and_130(run, monkeypatch):
    def interrupted(*_, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("neuroscope.pipeline.loading.load_pipeline", interrupted)
    assert run("sites") == (130, "", "neuroscope: interrupted\n")


#: What the console script that pip installs does.
CONSOLE_SCRIPT = "import sys; sys.argv[0] = 'bin/neuroscope'; from neuroscope.cli import main; main()"


@pytest.mark.parametrize("started", [["-m", "neuroscope"], ["-c", CONSOLE_SCRIPT]])
def test_an_interrupt_during_imports_is_one_line_and_130(started):
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may ignore it
    command = [sys.executable, *started, "sites"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while process.poll() is None and not _handles_interrupts(process.pid):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate()
    assert (process.returncode, out, error) == (130, "", "neuroscope: interrupted\n")


def _handles_interrupts(process: int) -> bool:
    """Whether a process has begun to import torch, long after it set its signals."""
    return "torch" in Path(f"/proc/{process}/maps").read_text()


def test_other_programs_keep_their_interrupts():
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
