"""Forecasts: the time of a plan on several workers, and the memory of each."""

import heapq
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroscope import HookGraph, InvalidInput
from neuroscope.core.results.quality import Plan
from neuroscope.generation.batches import fitted_batch_size
from neuroscope.generation.forecast import Forecast, forecast
from tests.families import tiny

SMALL = {"num_inference_steps": 2, "guidance_scale": 1.0}
LAYERS = ["--style", "stipple", "--exhaustive", "--pairs", "2", "--seeds", "1", "--num-inference-steps", "2", "--guidance-scale", "1"]
IMAGES, NFE = 2 * 18, 2 * 18 * 2


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return HookGraph(tiny.shallow())


def makespan(sizes: list[int], workers: int) -> int:
    """The images of the worker that ends last, where each takes the next task when it is free."""
    busy = [0] * workers
    for size in sizes:
        heapq.heappush(busy, heapq.heappop(busy) + size)
    return max(busy)


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 12))
def test_the_time_is_that_of_the_worker_with_most_images(images, batch, workers):
    found = Forecast(Plan(images, 3 * images), batch, workers, 2.0, 0, 0)
    sizes = [len(range(first, min(first + batch, images))) for first in range(0, images, batch)]
    assert found.tasks == len(sizes)
    assert math.isclose(found.seconds, 3 * makespan(sizes, workers) / 2.0)


def test_what_makes_no_image_takes_as_long_on_any_number_of_workers():
    assert [Forecast(Plan(0, 60), 4, workers, 2.0, 0, 0).seconds for workers in (1, 8)] == [30.0, 30.0]


def test_what_is_not_known_is_not_said():
    assert Forecast(None, 4, 8, 2.0, 10, 10).seconds is None
    assert Forecast(Plan(4, 4), 4, 8, None, 10, 10).seconds is None
    assert "not known before it runs" in str(Forecast(None, 4, 8, 2.0, 10, 10))


def test_it_reads_as_two_lines():
    found = Forecast(Plan(11_520, 460_800), 16, 16, 20.0, 7_000_000_000, 12_345_000_000)
    assert str(found).splitlines() == [
        "11,520 images, 460,800 NFE in 720 tasks of at most 16 images, about 24 min on 16 workers at 20 NFE a second each",
        "each worker: 7.00 GB of weights and at most 12.35 GB beside them for 16 images at a time (estimated)",
    ]
    measured = Forecast(Plan(16, 640), 16, 1, 1.234, 1, 2, is_measured=True)
    assert "about 9 min at 1.23 NFE a second each, as measured here" in str(measured)
    assert "(measured: the peak while 16 images were made here)" in str(measured)


def test_weights_are_counted_and_the_estimate_grows_with_the_batch_and_the_size(graph):
    modules = [part for part in graph.pipe.components.values() if hasattr(part, "parameters")]
    expected = sum(each.nbytes for module in modules for each in [*module.parameters(), *module.buffers()])
    few, many = (forecast(graph, Plan(4, 8), batch_size=size, **SMALL) for size in (2, 6))
    assert few.weights_bytes == many.weights_bytes == pytest.approx(expected, rel=0.01)
    assert many.working_bytes == 3 * few.working_bytes > 0
    assert forecast(graph, Plan(4, 8), batch_size=2, height=128, width=128).working_bytes > few.working_bytes
    assert forecast(graph, Plan(4, 8), **SMALL).batch_size == fitted_batch_size(graph, SMALL)


def test_a_measured_rate_is_that_of_one_batch_made_here(graph):
    with tiny.counted(graph.denoiser) as rows:
        found = forecast(graph, Plan(8, 16), batch_size=3, rate="measure", **SMALL)
    assert rows == [1, 1, 3, 3]
    assert found.is_measured
    assert 0 < found.rate < math.inf
    assert found.weights_bytes < found.weights_bytes + found.working_bytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers=0 is not allowed"),
        ({"batch_size": 0}, "batch_size=0 is not allowed"),
        ({"rate": 0.0}, "rate=0"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"rate": "fast"}, "rate='fast' is no rate; give NFE a second, or 'measure'"),
        ({"num_steps": 3}, "num_steps"),
    ],
)
def test_what_is_not_allowed_is_refused(graph, options, said, untyped):
    with pytest.raises(InvalidInput, match=said):
        forecast(graph, Plan(1, 1), **options)


class TestCommandLine:
    @pytest.fixture
    def run(self, run, pipe, monkeypatch):
        monkeypatch.setattr("neuroscope.pipeline.loading.load_pipeline", lambda _model, **_options: pipe)
        return run

    @pytest.mark.parametrize(
        ("options", "workers"),
        [
            ([], 1),
            (["--executor", "ray"], 1),
            (["--executor", "ray", "--workers", "8"], 8),
            (["--shard", "3/16"], 16),
            (["--shard", "1/2", "--executor", "ray", "--workers", "2"], 4),
        ],
        ids=str,
    )
    def test_a_dry_run_says_the_time_of_all_workers_and_shards(self, run, tmp_path, options, workers):
        asked = ["localize", *LAYERS, "--batch-size", "2", "--dry-run", "--rate", "0.01", *options, "-o", "made"]
        code, out, _ = run(*asked, "--json")
        facts = json.loads(out)
        assert (code, facts["images"], facts["nfe"], facts["tasks"], facts["workers"]) == (0, IMAGES, NFE, 18, workers)
        assert facts["seconds"] == pytest.approx(makespan([2] * 18, workers) * 2 / 0.01)
        text = run(*asked)[1]
        assert text.startswith(f"{IMAGES} images, {NFE} NFE in 18 tasks of at most 2 images, about ")
        assert (f" on {workers} workers" in text) == (workers > 1)
        assert "GB of weights and at most " in text
        assert list(tmp_path.iterdir()) == []

    def test_a_rate_can_be_measured(self, run, tmp_path):
        code, out, _ = run("localize", *LAYERS, "--batch-size", "2", "--dry-run", "--rate", "measure", "--json", "-o", "made")
        facts = json.loads(out)
        assert (code, facts["is_measured"]) == (0, True)
        assert facts["seconds"] == pytest.approx(NFE / facts["rate"])
        assert list(tmp_path.iterdir()) == []

    def test_a_method_whose_cost_is_not_known_says_so_and_the_memory(self, run):
        code, out, _ = run("localize", *LAYERS[:2], "--method", "Racing", *LAYERS[3:], "--dry-run", "-o", "made")
        assert code == 0
        assert "GB of weights" in out

    @pytest.mark.parametrize("rate", ["fast", "0", "nan", "-1", "inf"])
    def test_what_is_no_rate_is_refused(self, run, rate):
        code, _, err = run("localize", *LAYERS, "--dry-run", "--rate", rate, "-o", "made")
        assert (code, f"--rate={rate} is no rate; give NFE a second above 0, such as 20, or measure" in err) == (2, True)

    def test_single_images_have_no_batch_to_measure(self, run):
        code, _, err = run("generate", "--prompt", "a red circle", "--dry-run", "--rate", "measure", "-o", "made")
        assert (code, "--rate measure is for sweeps, such as localize" in err) == (2, True)
