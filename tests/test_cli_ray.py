"""`--executor ray` hands a command's images to workers, and options of workers alone are refused."""

import pytest

import neuroscope as ns
from tests.families import tiny

SHORT = ["--num-inference-steps", "2", "--guidance-scale", "1", "-q"]
SCORED = ["--prompt", tiny.PROMPT, "--seeds", "2", "--read", "style=stipple", *SHORT]
#: By command, arguments for images that an executor makes.
SWEEPS = {
    "localize": ["--style", "stipple", "--exhaustive", "--pairs", "1", "--seeds", "1", *SHORT],
    "rank": ["--style", "stipple", "--method", "NeuronAblation()", "--pairs", "1", *SHORT],
    "atlas": ["--style", "stipple", "--object", "ring", "--method", "NeuronAblation()", "--pairs", "1", *SHORT],
    "evaluate": SCORED,
    "dose": ["scores.safetensors", *SCORED],
}


def test_the_executor_is_the_one_that_was_asked_for(run, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("neuroscope.pipeline.loading.load_pipeline", lambda _model, **_options: pipe)
    opened: list[ns.Ray] = []

    def stop(executor, _graph):
        opened.append(executor)
        raise ns.InvalidInput("stop here")

    monkeypatch.setattr(ns.Ray, "open", stop)
    scores = ns.rank(ns.HookGraph(pipe), ns.Concept("stipple", ["a red circle"] * 2, ["a circle"] * 2), ns.Welch(), layers=3, quiet=True)
    ns.save(scores, tmp_path / "scores.safetensors")
    for name, arguments in SWEEPS.items():
        code, _, err = run(name, *arguments, "-o", "made", "--executor", "ray", "--workers", "3", "--address", "auto")
        assert (code, "stop here" in err) == (2, True), name
    assert opened == [ns.Ray(workers=3, address="auto")] * len(SWEEPS)


@pytest.mark.parametrize("option", [["--workers", "2"], ["--address", "auto"]], ids=" ".join)
def test_an_option_of_workers_without_any_is_refused(run, option):
    code, _, err = run("evaluate", *SCORED, "-o", "made", *option)
    assert code == 2
    assert f"{option[0]} would be ignored: images are made in this process; add --executor ray, or leave it out" in err


def test_an_unknown_executor_and_a_method_without_images_are_refused(run, tmp_path):
    code, _, err = run("evaluate", *SCORED, "-o", "made", "--executor", "rey")
    assert (code, "executor 'rey' is unknown; choose one of local, ray; did you mean 'ray'?" in err) == (2, True)
    code, _, err = run("rank", "--style", "stipple", "--method", "Welch()", "--executor", "ray")
    assert (code, "--executor would be ignored: Welch() scores recorded responses and makes no image" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_workers_make_what_the_process_itself_makes(run, tmp_path):
    pytest.importorskip("ray", reason="ray has no build for this Python")
    assert run("evaluate", *SCORED, "-o", "local.csv")[0] == 0
    assert run("evaluate", *SCORED, "-o", "ray.csv", "--executor", "ray", "--workers", "1", "--address", "local")[0] == 0
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
