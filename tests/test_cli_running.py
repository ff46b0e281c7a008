"""Where a command runs and what it costs: the first line, dry runs, devices, and scorers that are missing."""

import json

import pytest

import neuroscope as ns
from neuroscope import InvalidInput
from neuroscope.cli import main
from neuroscope.localization import plan_localization
from neuroscope.pipeline.placement import footprint
from tests.families import tiny

SHORT = ["--num-inference-steps", "2", "--guidance-scale", "1"]
PROMPT = ["--prompt", tiny.PROMPT]
#: By command, its arguments beside the output, and the images and NFE that it costs: two steps, one row a step.
RUNS = {
    "localize": (["--style", "stipple", "--exhaustive", "--pairs", "2", "--seeds", "1", *SHORT], 2 * 18, 2 * 18 * 2),
    "atlas": (
        ["--style", "stipple", "--object", "ring", "--method", "LocoGen", "--pairs", "2", "--seeds", "1", *SHORT],
        2 * 36,
        2 * 36 * 2,
    ),
    "evaluate": ([*PROMPT, "--seeds", "3", "--read", "style=stipple", *SHORT], 3, 3 * 2),
    "generate": ([*PROMPT, "--count", "2", *SHORT], 2, 2 * 2),
    "record": (["--style", "stipple", "--role", "query", *SHORT], 48, 48 * 2),
    "edit": (["--style", "stipple", "--layer", "8"], 0, 0),
}
#: Commands whose images others can make.
SWEEPS = ("localize", "atlas", "evaluate")


@pytest.fixture
def run(run, pipe, monkeypatch):
    monkeypatch.setattr("neuroscope.pipeline.loading.load_pipeline", lambda _model, **_options: pipe)
    return run


@pytest.mark.parametrize("name", RUNS)
def test_a_dry_run_says_the_cost_and_makes_nothing(run, pipe, tmp_path, name):
    arguments, images, nfe = RUNS[name]
    with tiny.counted(pipe.unet.conv_in) as calls:
        code, out, err = run(name, *arguments, "--dry-run", "-o", "made")
        assert code == 0
        assert out.startswith(f"{images} image{'s' * (images != 1)}, {nfe} NFE")
        assert ("the time is known after the first batch" in out) == (nfe > 0)
        assert ("each worker: " in out) == (name in SWEEPS)
        assert err == f"{footprint(pipe)}\n"
        code, out, err = run(name, *arguments, "--dry-run", "--json", "-o", "made")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert {key: facts.pop(key) for key in ("images", "nfe", "is_bound", "seconds")} == {
        "images": images,
        "nfe": nfe,
        "is_bound": False,
        "seconds": None,
    }
    assert set(facts) == (
        {"tasks", "batch_size", "workers", "rate", "weights_bytes", "working_bytes", "is_measured"} if name in SWEEPS else set()
    )
    assert calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rate", "said"), [(0.5, "8 s at 0.5"), (0.01, "7 min at 0.01"), (1e-4, "11 h at 0.0001")])
def test_a_dry_run_says_the_time_at_a_rate(run, rate, said):
    arguments, images, nfe = RUNS["generate"]
    code, out, _ = run("generate", *arguments, "--dry-run", "--rate", rate, "-o", "made")
    assert (code, out) == (0, f"{images} image{'s' * (images != 1)}, {nfe} NFE, about {said} NFE a second\n")
    code, out, _ = run("generate", *arguments, "--dry-run", "--rate", rate, "--json", "-o", "made")
    assert json.loads(out)["seconds"] == nfe / rate


def test_a_rate_without_a_dry_run_is_refused(run, tmp_path):
    arguments, _, _ = RUNS["generate"]
    code, _, err = run("generate", *arguments, "--rate", 2, "-o", "made")
    assert code == 2
    assert "--rate would be ignored: it is for the time that --dry-run says; add --dry-run, or leave it out" in err
    assert not list(tmp_path.rglob("*.png"))


def test_the_first_line_says_where_the_model_runs_and_the_second_what_it_costs(run, pipe):
    code, out, err = run("generate", *PROMPT, *SHORT, "-o", "out")
    assert code == 0
    assert err.splitlines()[:2] == [str(footprint(pipe)), "1 image, 2 NFE; the time is known after the first batch"]
    assert out == "wrote out/a-red-circle-in-the-style-of-plain-seed0.png\n"
    for flag in ("--quiet", "--json"):
        assert str(footprint(pipe)) not in run("generate", *PROMPT, *SHORT, "-o", "out", flag)[2]


def test_the_automatic_search_says_at_most(run):
    code, out, _ = run("localize", "--style", "stipple", "--pairs", 1, "--seeds", 1, *SHORT, "--dry-run", "-o", "made")
    assert code == 0
    assert out.startswith("at most ")


def test_a_method_whose_cost_is_not_known_says_so(run, monkeypatch):
    monkeypatch.setattr(ns.LocoGen, "plan", lambda *_: None)
    code, out, _ = run("localize", "--style", "stipple", "--pairs", 1, *SHORT, "--dry-run", "-o", "made")
    said = "the cost of this method is not known before it runs; the time is known after the first batch"
    assert (code, out.splitlines()[0]) == (0, said)


def test_exhaustive_and_a_method_exclude_each_other(run):
    code, _, err = run("localize", "--style", "stipple", "--exhaustive", "--method", "Racing", "-o", "made")
    assert code == 2
    assert "--method would be ignored: with --exhaustive the method is LocoGen; leave it out" in err


def test_batches_have_the_size_that_is_asked(run, pipe):
    with tiny.counted(pipe.unet) as calls:
        assert run("generate", *PROMPT, "--count", 3, "--batch-size", 2, "--quiet", *SHORT, "-o", "out")[0] == 0
    assert [each for each in calls if each > 1] == [2, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cuda:7"], "the device 'cuda:7' is not here"),
        (["--dtype", "half"], "dtype 'half' is unknown; choose one of auto, float16, bfloat16, float32"),
        (["--offload", "disk"], "offload 'disk' is unknown; choose one of none, model, sequential"),
        (["--revision", "main"], "revision='main' would be ignored: testbed:sd1 is the package's own; leave it out"),
        (["--config", "folder"], "config='folder' would be ignored"),
    ],
)
def test_what_a_model_cannot_be_opened_with_is_one_line(capsys, untyped, options, words):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *options])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert words in err
    assert len(err.splitlines()) == 1


class TestMissingScorers:
    MISSING = ns.ClipScore("stipple", model="nowhere/clip")

    def test_localize_evaluate_and_plans_fail_before_an_image(self, graph, concept, monkeypatch):
        monkeypatch.setattr("neuroscope.metrics.clip_score.CLIPModel.from_pretrained", unreachable)
        with tiny.counted(graph.denoiser) as calls:
            for verb in (ns.localize, plan_localization):
                with pytest.raises(InvalidInput, match="the CLIP model nowhere/clip cannot be loaded: no network Give a folder"):
                    verb(graph, concept, ns.LocoGen(), self.MISSING)
            with pytest.raises(InvalidInput, match="the CLIP model nowhere/clip cannot be loaded"):
                ns.evaluate(graph, {}, [tiny.PROMPT], metrics=self.MISSING)
        assert calls == []

    @pytest.mark.parametrize("command", [["localize", "--style", "stipple"], ["evaluate", *PROMPT]])
    def test_so_do_commands(self, run, pipe, monkeypatch, command):
        monkeypatch.setattr("neuroscope.metrics.clip_score.CLIPModel.from_pretrained", unreachable)
        with tiny.counted(pipe.unet) as calls:
            code, _, err = run(*command, "--metric", "ClipScore(text='x', model='nowhere/clip2')", "--quiet", "-o", "made")
        assert code == 2
        assert "the CLIP model nowhere/clip2 cannot be loaded" in err
        assert calls == []


def unreachable(*_args, **_options):
    raise OSError("no network\nand more")


class TestForeignModels:
    """A fine-tune has the sites and widths of its base."""

    @pytest.fixture
    def fine_tune(self):
        pipe = tiny.sd1(seed=1)
        pipe.register_to_config(_name_or_path="me/fine-tune")
        return ns.HookGraph(pipe)

    def test_a_mask_runs_and_says_once_where_it_was_made(self, graph, recording, fine_tune, tmp_path):
        mask = ns.NeuronMask(ns.score(recording, ns.Welch()).top(10))
        ns.save(mask, tmp_path / "m.safetensors")
        loaded = ns.load(tmp_path / "m.safetensors")
        assert loaded.made_on == graph.model
        plain = tiny.draw(fine_tune.pipe)
        words = "the neuron-mask was made on 'StableDiffusionPipeline' and is applied to 'me/fine-tune'; its sites and widths match"
        with pytest.warns(UserWarning, match=words), fine_tune.apply(loaded):
            masked = tiny.draw(fine_tune.pipe)
        assert not masked.equal(plain)
        with fine_tune.apply(loaded):
            assert tiny.draw(fine_tune.pipe).equal(masked)
        with graph.apply(loaded):
            tiny.draw(graph.pipe, num_inference_steps=1)

    def test_edits_and_swaps_say_it_too(self, graph, concept, fine_tune):
        edit = ns.edit(graph, concept, ns.LocoEdit(), layers=8)
        swap = ns.ContextSwap.of(graph, graph.sites.where(layer=8, role="value"), tiny.OTHER)
        for change in (edit, swap):
            fine_tune._noted.clear()
            with pytest.warns(UserWarning, match=f"the {change.kind} was made on"), fine_tune.apply(change):
                tiny.draw(fine_tune.pipe, num_inference_steps=1)
