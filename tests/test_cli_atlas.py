"""`neuroscope atlas`: several concepts scored by one method, in one file, on workers, in shards and ahead of time."""

import json

import pytest

import neuroscope as ns
from neuroscope.core.results.scores import NeuronScores

SHORT = ("--num-inference-steps", "2", "--guidance-scale", "1", "--pairs", "1", "--batch-size", "8", "-q")
TWO = ("--style", "stipple", "--object", "ring")
LAYERS = ("atlas", *TWO, "--method", "LocoGen(window=8)", "--seeds", "1", *SHORT)
NEURONS = ("atlas", *TWO, "--method", "NeuronAblation(group=32)", "--layer", "3", *SHORT)
TOML = 'name = "signs"\npresent = ["a red star"]\nabsent = ["a red ring"]\n'


@pytest.fixture
def run(run, pipe, monkeypatch):
    monkeypatch.setattr("neuroscope.pipeline.loading.load_pipeline", lambda _model, **_options: pipe)
    return run


def test_layers_of_several_concepts_are_printed_saved_and_drawn(run, tmp_path):
    (tmp_path / "signs.toml").write_text(TOML)
    code, out, _ = run(*LAYERS, "--concept", "signs.toml", "--top", 2, "-o", "atlas.safetensors")
    assert code == 0
    found = ns.load(tmp_path / "atlas.safetensors", ns.Atlas)
    assert list(found) == ["stipple", "ring", "signs"]
    assert out.splitlines()[0] == repr(found)
    rows = [line.split() for line in out.splitlines()[2:-1]]
    assert [row[0] for row in rows] == ["stipple"] * 2 + ["ring"] * 2 + ["signs"] * 2
    for name, scores in found.items():
        best = [layer for layer, _ in sorted(zip(scores.layers, scores.scores, strict=True), key=lambda each: -each[1])][:2]
        assert [int(row[1]) for row in rows if row[0] == name] == best
    assert run("plot", "atlas.safetensors", "-o", "atlas.png")[0] == 0
    assert (tmp_path / "atlas.png").stat().st_size > 10_000


def test_neurons_are_as_json_what_python_gives(run, pipe, tmp_path):
    code, out, _ = run(*NEURONS, "--json", "--top", 3, "-o", "atlas.safetensors")
    assert code == 0
    facts = json.loads(out)
    concepts = [ns.Concept.style("stipple", "testbed"), ns.Concept.attribute("ring", "object", "testbed")]
    options = {"num_inference_steps": 2, "guidance_scale": 1.0, "pairs": 1, "batch_size": 8, "quiet": True}
    expected = ns.atlas(ns.HookGraph(pipe), concepts, ns.NeuronAblation(group=32), layers=[3], seeds=[0], **options)
    assert [(each["concept"], each["site"], each["neuron"]) for each in facts["scores"]] == [
        (row.concept, row.site, row.neuron) for row in expected.to_frame().groupby("concept", sort=False).head(3).itertuples()
    ]
    found = ns.load(tmp_path / "atlas.safetensors", ns.Atlas)
    assert all(isinstance(each, NeuronScores) for each in found.values())


def test_a_method_on_recordings_needs_no_images(run, tmp_path):
    code, _, _ = run("atlas", *TWO, "--method", "MeanDifference", "--layer", "3", "-q", "-o", "atlas.safetensors")
    assert code == 0
    assert "by MeanDifference(" in repr(ns.load(tmp_path / "atlas.safetensors"))


@pytest.mark.parametrize("arguments", [LAYERS, NEURONS], ids=["layers", "neurons"])
def test_a_dry_run_adds_all_concepts_up(run, tmp_path, arguments):
    code, out, _ = run(*arguments, "--dry-run", "--json", "-o", "made")
    each = [json.loads(run(*arguments[:1], *named, *arguments[5:], "--dry-run", "--json", "-o", "made")[1]) for named in (TWO[:2], TWO[2:])]
    assert code == 0
    facts = json.loads(out)
    for name in ("images", "nfe"):
        assert facts[name] == sum(one[name] for one in each) > 0
    assert list(tmp_path.iterdir()) == []


def test_shards_are_merged_into_the_atlas(run, tmp_path):
    assert run(*LAYERS, "--resume", "alone", "-o", "alone.safetensors")[0] == 0
    for number in (1, 2):
        code, out, _ = run(*LAYERS, "--shard", f"{number}/2", "-o", f"part-{number}")
        assert (code, out.startswith(f"shard {number}/2: made ")) == (0, True)
    assert run("merge", "part-1", "part-2", "-o", "whole")[0] == 0
    assert run(*LAYERS, "--resume", "whole", "-o", "merged.safetensors")[0] == 0
    alone, merged = (ns.load(tmp_path / f"{name}.safetensors", ns.Atlas) for name in ("alone", "merged"))
    assert {name: each.scores for name, each in merged.items()} == {name: each.scores for name, each in alone.items()}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (SHORT, "name concepts by --style, --object, --attribute or --concept FILE, as often as you like; none was given"),
        (("--style", "stipple", "--style", "stipple"), "values of --style"),
        (("--concept", "signs.toml", "--against", "plain"), "--against would be ignored: it is for a style, an object or an attribute"),
        ((*TWO, "--method", "LocoGen", "--layer", "3"), "--layers would be ignored: LocoGen() scores all layers"),
        ((*TWO, "--method", "Welch", "--seeds", "2"), "--seeds would be ignored: Welch() scores recorded responses and makes no image"),
        ((*TWO, "--method", "Welch", "--executor", "ray"), "--executor would be ignored: Welch() scores recorded responses"),
        ((*TWO, "--pairs", "99999"), "--pairs=99999 are more than the concept's"),
        ((*TWO, "--method", "Loco"), "method 'Loco' is unknown; choose one of "),
        ((*TWO, "--shard", "1/2", "--resume", "a"), "--resume would be ignored: a shard's ledger is its --output"),
        ((*TWO, "--shard", "1/2", "--batch-size", "8"), "NeuronGradient() cannot be made in shards"),
        ((*TWO, "--shard", "1/2", "--method", "LocoGen"), "batch_size is missing: all shards must cut the same tasks"),
    ],
)
def test_what_does_not_go_together_is_refused(run, tmp_path, given, said):
    (tmp_path / "signs.toml").write_text(TOML)
    code, _, err = run("atlas", *given, "-o", "made")
    assert (code, said in err) == (2, True), err
    assert not (tmp_path / "made").exists()
