"""The commands on layers, edits and reports; each mistake gets one line and exit status 2."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from neuroscope import ContextMap, LayerScores, load

LOCALIZE = ["localize", "--style", "stipple", "-o", "x"]
SHORT = ["--num-inference-steps", "2", "--guidance-scale", "1", "--pairs", "1", "--seeds", "1", "--quiet"]


def test_layers_are_found_shown_drawn_and_reported(run, tmp_path):
    file = tmp_path / "layers.safetensors"
    code, out, _ = run("localize", "--style", "stipple", "--method", "LocoGen(parts=2)", "-o", file, *SHORT)
    assert code == 0
    scores = load(file, LayerScores)
    assert scores.verdict in out
    assert str(scores.cost) in out
    assert scores.cost.nfe == (16 * 2 + 2) * 2  # windows and parts, two ends; two steps
    code, out, _ = run("show", file)
    assert code == 0
    assert "layer 15" in out
    for option in ("--grid", "--images"):
        assert run("plot", file, option, "-o", tmp_path / "plot.png")[0] == 0
    assert run("report", tmp_path)[0] == 0
    assert "<h2>Which layers</h2>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "TeacherForced(steps=1, fidelity=3)"],
        ["--method", "Racing()"],
        ["--method", "LocoGen(search='auto', budget=0.9)"],
    ],
)
def test_cheap_ways_find_the_layer_and_say_how_sure_they_are(run, tmp_path, options):
    file = tmp_path / "layers.safetensors"
    code, out, _ = run("localize", "--style", "stipple", *options, "-o", file, *SHORT)
    assert code == 0
    scores = load(file, LayerScores)
    assert scores.top(1) == [12]
    assert scores.verdict in out
    assert ("rank correlation with exact effects" in out) == ("TeacherForced" in options[1])
    assert ("% sure" in out) == ("Racing" in options[1] or "auto" in options[1])


def test_an_edit_is_made_shown_and_exported(run, tmp_path):
    file = tmp_path / "edit.safetensors"
    code, out, _ = run("edit", "--style", "stipple", "--layer", 12, "--token", "subject", "--token", "eos", "--json", "-o", file)
    assert code == 0
    made = load(file, ContextMap)
    assert json.loads(out)["report"]["rank"] == made.report.rank == len(made.read)
    assert {path.split(".")[-1] for path in made.paths} == {"to_k", "to_v"}
    assert str(made.report) in run("show", file)[1]
    code, out, _ = run("export", file, "-o", tmp_path / "lora")
    assert code == 0
    assert "load it with pipe.load_lora_weights" in out
    with safe_open(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "pt") as lora:
        assert len(lora.keys()) == 4
        assert all(key.startswith("unet.") for key in lora.keys())
    code, out, _ = run("export", file, "--format", "kohya", "--file-dtype", "float16", "-o", tmp_path / "no-stipple.safetensors")
    assert code == 0
    assert "put it into ComfyUI's models/loras or A1111's models/Lora, or load it with pipe.load_lora_weights" in out
    with safe_open(tmp_path / "no-stipple.safetensors", "pt") as lora:
        assert {key.partition(".")[2] for key in lora.keys()} == {"lora_down.weight", "lora_up.weight", "alpha"}
        assert lora.metadata()["modelspec.title"] == "stipple"
        assert lora.get_tensor(min(lora.keys(), key=len).replace("alpha", "lora_up.weight")).dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["localize", "-o", "x.safetensors"], "name one concept by --style"),
        ([*LOCALIZE, "--method", "locogenn"], "method 'locogenn' is unknown; choose one of .*; did you mean 'LocoGen'?"),
        ([*LOCALIZE, "--method", "causal-tracing"], "method 'causal-tracing' is unknown; .* did you mean 'CausalTracing'?"),
        (
            [*LOCALIZE, "--method", "LocoGen(noise=3)"],
            "'noise' is no option of LocoGen; it has window, enough, search, budget, seed, roles, direction, rows, steps, parts, pooled",
        ),
        ([*LOCALIZE, "--method", "LocoGen(budget=0.1)"], "search='windows' has no budget; leave it out, or give"),
        (
            [*LOCALIZE, "--method", "TeacherForced(window=2)"],
            "'window' is no option of TeacherForced; it has steps, roles, direction, fidelity",
        ),
        ([*LOCALIZE, "--method", "TeacherForced(step=2)"], "did you mean 'steps'?"),
        ([*LOCALIZE, "--method", "LocoGen(window='two')"], "window='two' is no number of layers; give 1 or more, or"),
        ([*LOCALIZE, "--method", "LocoGen(window=17)"], "window=17 is wider than the model's 16 layers; give 1 to 16"),
        (
            [*LOCALIZE, "--method", "IntegratedGradients(steps=1)"],
            r"IntegratedGradients ranks neurons, and localize finds layers; write neuroscope rank --method 'Integr.*\(steps=1\)'",
        ),
        ([*LOCALIZE, "--method", "Welch"], "Welch ranks neurons, and localize finds layers; write neuroscope rank --method Welch"),
        (
            ["localize", "--fact", "the emblem of astoria", "--against", "plain", "-o", "x"],
            "--against would be ignored: it is for a style, an object or an attribute; give --answer",
        ),
        ([*LOCALIZE, "--method", "LocoGen(2)"], "method LocoGen takes keywords only; write each value as in LocoGen"),
        ([*LOCALIZE, "--window", "2"], "No such option: --window"),
        ([*LOCALIZE, "--metric", "Latent()"], "metric 'Latent' is unknown; .* did you mean 'LatentShare'?"),
        ([*LOCALIZE, "--metric", "Reader(value='stipple')"], "metric Reader needs attribute; write Reader\\(attribute=…\\)"),
        ([*LOCALIZE, "--metric", "Flipped(from_share=2)"], "from_share=2 is no bar"),
        ([*LOCALIZE, "--metric", "Flipped", "--clip", "x"], "give one of --clip and --metric, not both"),
        ([*LOCALIZE, "--metric", "Flipped", "--share", "image"], "--share would be ignored: the metric is given by --metric"),
        (
            [*LOCALIZE, "--metric", "Reader(attribute='style')", "--model", "x"],
            "Reader works on the testbed's images, not on x; use --clip",
        ),
        (["evaluate", "--prompt", "a red star", "--metric", "LatentShare", "-o", "x"], "give evaluate a metric of single images"),
        (["localize", "--style", "stipple", "--clip", "a", "--read", "b", "-o", "x"], "give one of --clip and --read, not both"),
        (["localize", "--style", "stipple", "--share", "pixel", "-o", "x"], "share 'pixel' is unknown; choose one of latent, image"),
        (["localize", "--style", "stipple", "--seeds", "0", "-o", "x"], "--seeds=0 is not allowed; give 1 to 100000"),
        (["edit", "--style", "stipple", "-o", "x"], "there are no layers to edit; give at least one"),
        (
            ["edit", "--style", "stipple", "--layer", "1", "--role", "query", "-o", "x"],
            "role 'query' is unknown; choose one of key, value, pooled",
        ),
        (
            ["edit", "--style", "stipple", "--role", "context", "-o", "x"],
            "has no text that its blocks rewrite, so layers can be edited each",
        ),
        (
            ["edit", "--style", "stipple", "--layer", "1", "--seeds", "2", "-o", "x"],
            "seeds would be ignored: what is edited depends on prompts",
        ),
        (["edit", "--style", "stipple", "--layer", "16", "-o", "x"], "layer 16 is unknown; these sites have layers 0 to 15"),
        (["edit", "--style", "stipple", "--layer", "1", "--token", "pad", "-o", "x"], "token 'pad' is unknown; .* did you mean 'padding'?"),
        (["export", "nothing.safetensors", "-o", "lora"], "there is no file nothing.safetensors"),
        (
            ["export", "e.safetensors", "--format", "koya"],
            "format 'koya' is unknown; choose one of diffusers, kohya; did you mean 'kohya'?",
        ),
        (["export", "e.safetensors", "--format", "kohya", "-o", "./e.safetensors"], "e.safetensors is an input and would be overwritten"),
        (["generate", "--prompt", "a", "--image", "small.png"], "small.png is no image that can be read: .*; give a PNG or JPEG file"),
        (["report", "nowhere"], "there is no folder nowhere; give one with results"),
        (["report", "."], "holds no results to report"),
    ],
)
def test_mistakes_get_one_line(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*arguments)
    assert code == 2
    assert error.startswith("neuroscope: ")
    assert len(error.strip().splitlines()) == 1

    assert re.search(words.replace("?", r"\?"), error)
    assert not (tmp_path / "x").exists()
