"""`neuroscope rank`: by cause from a concept, by response from a recording."""

import json
import re

import pytest
import torch

import neuroscope as ns

SHORT = ["--num-inference-steps", "2", "--guidance-scale", "1", "--quiet"]
GRADIENT = "IntegratedGradients(roles=('value',), steps=1, samples=1, fidelity=0)"
STYLE = ["rank", "--style", "stipple"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording of layer 12 of the bundled model."""
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    found = ns.record(graph, ns.Concept.style("stipple", prompts="testbed"), graph.sites.where(layer=12, text_only=True), quiet=True)
    return ns.save(found, tmp_path_factory.mktemp("recorded") / "r.safetensors")


def test_neurons_are_ranked_by_cause_straight_from_a_concept(run):
    asked = ["--method", GRADIENT, "--layer", 12, "--pairs", 1, *SHORT]
    code, out, _ = run(*STYLE, *asked, "--top", 3, "-o", "s.safetensors")
    assert code == 0
    scores = ns.load("s.safetensors", ns.NeuronScores)
    assert scores.provenance.method == f"{GRADIENT}, LatentShare()"
    assert scores.provenance.contrast == "against plain, hatch, ribbon and 2 more"
    assert scores.sites.layers == (12,)
    assert out.startswith(f"{scores}\n")
    assert len(out.splitlines()) == 1 + 1 + 3
    assert "contrast: against plain, hatch, ribbon and 2 more" in run("show", "s.safetensors")[1]
    code, out, _ = run(*STYLE, *asked, "--against", "plain", "--read", "style=stipple", "--json", "-o", "s.safetensors")
    assert [row["rank"] for row in json.loads(out)] == list(range(1, 21))
    scores = ns.load("s.safetensors", ns.NeuronScores)
    assert scores.provenance.method == f"{GRADIENT}, Reader(attribute='style', value='stipple')"
    assert scores.provenance.contrast == "against plain"


def test_the_default_method_is_a_gradient(run, monkeypatch):
    asked = []

    def look(self, experiment):
        asked.append((self, experiment.layers, experiment.seeds, len(experiment.pairs)))
        raise ns.InvalidInput("seen")

    monkeypatch.setattr(ns.NeuronGradient, "__call__", look)
    assert run(*STYLE, "--layers", 8, "--layers", 9, *SHORT)[2] == "neuroscope: seen\n"
    assert asked == [(ns.NeuronGradient(), (8, 9), (0,), 24)]


def test_a_response_method_ranks_from_a_concept_too(run, recording):
    code, *_ = run(*STYLE, "--method", "Welch", "--layer", 12, "-q", "-o", "s.safetensors")
    assert code == 0
    expected = ns.score(ns.load(recording), ns.Welch())
    assert ns.load("s.safetensors", ns.NeuronScores).top(20) == expected.top(20)


def test_a_recording_is_ranked_by_welch_unless_told_otherwise_and_says_so(run, recording):
    said = "A recording is ranked by Welch(), which tells what responds; --method chooses another way."
    code, out, _ = run("rank", recording, "--top", 2)
    assert code == 0
    assert out.startswith(f"{said}\nNeuronScores('stipple' against plain, hatch, ribbon and 2 more by Welch(): ")
    for options in (["--method", "MeanDifference"], ["--json"]):
        assert said not in run("rank", recording, *options)[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "NeuronGradient"], r"NeuronGradient\(\) runs the model, and .*r.safetensors is a recording; leave it out and name"),
        (["--style", "stipple"], "--style would be ignored: .*r.safetensors is a recording, which is ranked as it is"),
        (["--model", "testbed:sd1"], "--model would be ignored: .*r.safetensors is a recording"),
        (["--layer", "8"], "--layers? would be ignored: .*r.safetensors is a recording"),
        (["--seeds", "2"], "--seeds would be ignored: .*r.safetensors is a recording"),
        (["--method", "LocoGen"], "LocoGen finds layers, and rank ranks neurons; write neuroscope localize --method LocoGen"),
        (["--method", "Wellch"], "method 'Wellch' is unknown; choose one of .*; did you mean 'Welch'?"),
    ],
)
def test_what_does_not_fit_a_recording_is_refused(run, recording, options, words):
    code, _, error = run("rank", recording, *options)
    assert (code, error.count("\n")) == (2, 1)
    assert re.search(words.replace("'?", r"'\?"), error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rank"], "name one concept by --style, --object, --fact, --attribute or --concept FILE"),
        (
            [*STYLE, "--method", "Welch", "--seeds", "2"],
            r"--seeds would be ignored: Welch\(\) scores recorded responses",
        ),
        ([*STYLE, "--method", "Auroc()", "--pairs", "2"], "--pairs would be ignored: Auroc"),
        ([*STYLE, "--method", "Welch", "--num-inference-steps", "2"], "--num-inference-steps would be ignored: Welch"),
        ([*STYLE, "--method", "Welch", "--resume", "rows"], "--resume would be ignored: Welch"),
        ([*STYLE, "--method", "Welch", "--share", "image"], "--share would be ignored: Welch"),
        ([*STYLE, "--method", "LocoGen(window=2)"], r"LocoGen finds layers, .*; write neuroscope localize --method 'LocoGen\(window=2\)'"),
        (
            [*STYLE, "--method", "NeuronGradient(layers=8)"],
            "'layers' is no option of NeuronGradient; it has roles, samples, least",
        ),
        ([*STYLE, "--layer", "16"], "layer 16 is unknown; these sites have layers 0 to 15"),
        ([*STYLE, "--pairs", "99"], "--pairs=99 are more than the concept's 24; give at most these"),
        (["rank", "none.safetensors"], "there is no file none.safetensors"),
    ],
)
def test_mistakes_get_one_line(run, arguments, words):
    code, _, error = run(*arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("neuroscope: ")
    assert re.search(words, error)


def test_a_mask_of_scores_drops_out_or_takes_its_fill_from_a_recording(run, recording):
    found = ns.load(recording)
    ns.save(ns.score(found, ns.Welch()), "s.safetensors")
    assert run("mask", "s.safetensors", "--top", 3, "-o", "m.safetensors")[0] == 0
    assert not any(level.any() for level in ns.load("m.safetensors").fill.values())
    assert run("mask", "s.safetensors", "--top", 3, "--fill", "absent", "--recording", recording, "-o", "m.safetensors")[0] == 0
    expected = ns.NeuronMask(ns.load("s.safetensors").top(3), fill=found.mean("absent"))
    for path, level in expected.to_parts()[0].items():
        assert torch.equal(ns.load("m.safetensors").to_parts()[0][path], level)
    assert "needs means, and scores hold none; give a number" in run("mask", "s.safetensors", "--fill", "absent", "-o", "x")[2]
    assert "--recording would be ignored: " in run("mask", recording, "--recording", "s.safetensors", "-o", "x")[2]
