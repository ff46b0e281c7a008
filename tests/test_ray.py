"""Workers on a Ray cluster make what `Local` makes, to the bit; what cannot work is refused by name before the first image."""

import errno
import os
import pickle
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from neuroscope import (
    HookGraph,
    ImageShare,
    InvalidFile,
    InvalidInput,
    LatentShare,
    LedgerSummary,
    Local,
    LocoGen,
    NeuronAblation,
    Ray,
    TasksFailed,
    Welch,
    atlas,
    dose_response,
    evaluate,
    localize,
    rank,
    testbed,
)
from neuroscope.core.storage import write_beside
from neuroscope.generation.executors import Part, Task, Work, Workers
from neuroscope.generation.executors.cluster import check_room, connected, dashboard
from neuroscope.generation.executors.replica import Identity
from neuroscope.generation.executors.sending import UNSENDABLE, Sending
from neuroscope.generation.ledgers.ledger import Ledger
from tests import ray_parts
from tests.families import tiny
from tests.localization.planted import SMALL, Corner
from tests.test_executors import CONCEPT, LAYER_METHODS, NEURON_METHODS, ONCE, same

ray = pytest.importorskip("ray", reason="ray has no build for this Python")
COUNTS = (1, 2, 4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster on this machine, with GPUs that are mere names."""
    ray.init(address="local", num_cpus=8, num_gpus=2, resources={"rare": 1}, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return ray_parts.graph()


@pytest.fixture(scope="module")
def workers(cluster, graph) -> Iterator[Workers]:
    """Two workers, with a GPU each."""
    with Ray(workers=2, gpus_per_worker=1, pipeline=ray_parts.pipeline).open(graph) as opened:
        yield opened


@pytest.fixture(scope="module", params=COUNTS)
def several(request, cluster, graph) -> Iterator[Workers]:
    """Some workers, of which all cases of a number are made by the same."""
    with Ray(workers=request.param, pipeline=ray_parts.pipeline).open(graph) as opened:
        yield opened


def read_only(_path, _data):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


class Shuffled(Workers):
    """Hands tasks to workers in another order."""

    def __init__(self, workers: Workers, seed: int = 0) -> None:
        self._workers, self._rng = workers, np.random.default_rng(seed)

    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        order = self._rng.permutation(len(tasks))
        for number, part in self._workers.run(work, [tasks[each] for each in order], done):
            yield int(order[number]), part


def check_layers(graph, method, metric, executor) -> None:
    alone, found = (localize(graph, CONCEPT, method, metric, keep_images=1, executor=each, **ONCE) for each in (Local(), executor))
    assert found.scores == alone.scores
    same(found.effects.values, alone.effects.values)
    assert found.images == alone.images
    assert (found.confidence, found.fidelity, found.cost.nfe) == (alone.confidence, alone.fidelity, alone.cost.nfe)


def check_neurons(graph, method, executor) -> None:
    alone, found = (rank(graph, CONCEPT, method, layers=3, executor=each, **ONCE) for each in (Local(), executor))
    assert found.cost.nfe == alone.cost.nfe
    for path, values in alone.scores.items():
        same(found.scores[path], values)


class TestTheSameBits:
    @pytest.mark.parametrize("metric", [LatentShare(), ImageShare(), Corner()], ids=repr)
    def test_layers(self, metric, workers, graph):
        check_layers(graph, LocoGen(), metric, workers)

    def test_layers_in_another_order(self, workers, graph):
        check_layers(graph, LocoGen(), LatentShare(), Shuffled(workers))

    def test_neurons(self, workers, graph):
        check_neurons(graph, NeuronAblation(), workers)

    @pytest.mark.parametrize("method", LAYER_METHODS, ids=repr)
    def test_every_method_of_layers(self, method, several, graph):
        check_layers(graph, method, LatentShare(), Shuffled(several))

    @pytest.mark.parametrize("method", [each for each in NEURON_METHODS if each.makes_images], ids=repr)
    def test_every_method_of_neurons(self, method, several, graph):
        check_neurons(graph, method, Shuffled(several))

    def test_tables_and_atlases(self, several, graph):
        """The verbs beside single methods."""
        scores = rank(graph, CONCEPT, Welch(), layers=3, quiet=True)
        reversed_ = replace(CONCEPT, name="reversed", present=CONCEPT.absent, absent=CONCEPT.present)
        options = SMALL | {"seeds": [0, 1], "batch_size": 5, "quiet": True}

        def made(executor: Workers) -> tuple:
            table = evaluate(graph, {"mask": tiny.mask(graph, layer=3)}, CONCEPT.present, metrics=Corner(), executor=executor, **options)
            asked = {"metrics": Corner(), "budgets": [2], "unrelated": ["a cup"], "executor": executor}
            doses = dose_response(graph, scores, CONCEPT.present, **asked, **options)
            found = atlas(graph, [CONCEPT, reversed_], LocoGen(window=3), executor=executor, **options)
            return table, doses.scores, doses.changes, found.to_frame()

        for expected, found in zip(made(Local()), made(Shuffled(several)), strict=True):
            if isinstance(expected, pd.DataFrame):
                pd.testing.assert_frame_equal(found, expected, check_exact=True)
            else:
                same(found, expected)

    def test_an_evaluation(self, workers, graph):
        asked = {"mask": tiny.mask(graph, layer=3)}, CONCEPT.present, [0, 1], [Corner(), Corner(-1.0, "opposite")]
        options = SMALL | {"batch_size": 5, "quiet": True}
        alone, found = (evaluate(graph, *asked, executor=each, **options) for each in (Local(), workers))
        pd.testing.assert_frame_equal(found, alone, check_exact=True)

    def test_a_dose_response(self, workers, graph):
        scores = rank(graph, CONCEPT, Welch(), layers=3, quiet=True)
        options = SMALL | {"metrics": Corner(), "budgets": [2], "unrelated": ["a cup"], "seeds": [0], "batch_size": 5, "quiet": True}
        alone, found = (dose_response(graph, scores, CONCEPT.present, executor=each, **options) for each in (Local(), workers))
        assert torch.equal(alone.scores, found.scores)
        assert torch.equal(alone.changes, found.changes)

    def test_a_task_that_does_not_fit_the_memory_is_halved_in_its_worker(self, cluster, graph):
        options = SMALL | {"seeds": [0, 1, 2], "controls": False, "batch_size": 4, "quiet": True}
        executor = Ray(workers=1, pipeline=ray_parts.crowded_pipeline)
        with pytest.warns(UserWarning, match="out of memory; going on with 2 images at a time"):
            found = evaluate(graph, {"none": None}, CONCEPT.present, metrics=Corner(), executor=executor, **options)
        assert found["halved"].tolist() == [True] * 4 + [False] * 2
        alone = evaluate(graph, {"none": None}, CONCEPT.present, metrics=Corner(), **options)
        pd.testing.assert_frame_equal(found.drop(columns="halved"), pd.DataFrame(alone))


class TestFailures:
    def test_a_task_that_fails_three_times_is_reported_after_the_rest(self, workers, graph, tmp_path):
        options = SMALL | {"seeds": [0], "controls": False, "batch_size": 1, "quiet": True, "output": tmp_path / "scores.jsonl"}
        wrong, *_ = prompts = [f"a {color} cup" for color in ("red", "blue", "green", "cyan")]
        said = r"1 of 4 tasks \(1 image\) failed 3 times each, and all others are made: ZeroDivisionError: of no image. Finished images are"
        with pytest.raises(TasksFailed, match=said) as caught:
            evaluate(graph, {"none": None}, prompts, metrics=ray_parts.Broken(wrong), executor=workers, **options)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with tiny.counted(graph.denoiser) as calls, pytest.raises(ZeroDivisionError):
            evaluate(graph, {"none": None}, prompts, metrics=ray_parts.Broken(wrong), **options)
        assert calls == [1] * SMALL["num_inference_steps"]  # the others are in the ledger

    def test_each_image_that_fails_is_listed_with_its_own_reason(self, workers, graph, tmp_path):
        options = SMALL | {"seeds": [0], "controls": False, "batch_size": 2, "quiet": True, "output": tmp_path / "run"}
        prompts = [f"a {color} cup" for color in ("red", "blue", "green", "cyan")]
        said = r"2 of 2 tasks \(4 images\) failed .*: ZeroDivisionError: of a \w+ cup. 1 of them failed for other reasons"
        with pytest.raises(TasksFailed, match=said):
            evaluate(graph, {"none": None}, prompts, metrics=ray_parts.Failing(), executor=workers, **options)
        (run,) = LedgerSummary.of(tmp_path / "run").runs
        reasons = {run.missing[key]: reason for key, reason in run.failed.items()}
        firsts = [prompts[0]] * 2 + [prompts[2]] * 2
        assert reasons == {
            f"none, {prompt!r}, seed 0": f"ZeroDivisionError: of {first}" for prompt, first in zip(prompts, firsts, strict=True)
        }

    def test_an_error_that_no_other_process_can_rebuild_is_said(self, workers, graph):
        options = SMALL | {"seeds": [0], "controls": False, "quiet": True}
        with pytest.raises(TasksFailed, match=r"1 of 1 task .*: RuntimeError: Particular: a cup is not mauve. Finished"):
            evaluate(graph, {"none": None}, ["a cup"], metrics=ray_parts.Failing(particular=True), executor=workers, **options)

    def test_a_result_that_finds_no_room_is_said_by_name(self, workers, graph):
        options = SMALL | {"seeds": [0], "controls": False, "quiet": True}
        with pytest.raises(TasksFailed, match=r"1 of 1 task .*: OutOfDiskError: no room here. Finished images are kept"):
            evaluate(graph, {"none": None}, ["a cup"], metrics=ray_parts.Crowding(), executor=workers, **options)

    def test_a_place_that_is_read_only_is_refused_before_any_worker_makes_an_image(self, workers, graph, tmp_path, monkeypatch):
        monkeypatch.setattr("neuroscope.generation.ledgers.location.write_beside", read_only)
        metric = ray_parts.Logged(str(tmp_path / "log"), 0)
        with pytest.raises(InvalidFile, match="run cannot be written: Read-only file system; what is finished is kept"):
            evaluate(graph, {}, ["a cup"], [0], metric, executor=workers, output=tmp_path / "run", quiet=True, **SMALL)
        assert not (tmp_path / "log").exists()

    def test_a_place_that_becomes_read_only_keeps_what_was_written(self, workers, graph, tmp_path, monkeypatch):
        writes: list[object] = []

        def write(path, data):
            writes.append(path)
            return (write_beside if len(writes) <= 3 else read_only)(path, data)

        options = SMALL | {"controls": False, "batch_size": 1, "quiet": True, "output": tmp_path / "run"}
        asked = graph, {"none": None}, ["a cup"], range(5), ray_parts.Logged(str(tmp_path / "log"), 0)
        monkeypatch.setattr("neuroscope.generation.ledgers.location.write_beside", write)
        with (
            pytest.warns(UserWarning, match="all rows are there"),
            pytest.raises(InvalidFile, match="run cannot be written: Read-only file system"),
        ):
            evaluate(*asked, executor=workers, **options)
        monkeypatch.undo()
        assert LedgerSummary.of(tmp_path / "run").rows == 2  # and the plan
        found = evaluate(*asked, executor=workers, **options)
        pd.testing.assert_frame_equal(found, evaluate(*asked, **options | {"output": None}), check_exact=True)

    def test_a_call_that_ends_early_leaves_nothing_to_its_workers(self, workers, graph, monkeypatch):
        def refuse(_ledger, _rows, **_options):
            raise InvalidFile("no room")

        monkeypatch.setattr(Ledger, "add", refuse)
        options = SMALL | {"controls": False, "batch_size": 1, "quiet": True}
        with pytest.raises(InvalidFile, match="no room") as caught:
            evaluate(graph, {"none": None}, ["a cup"], range(9), Corner(), executor=workers, **options)
        assert caught.tb is not None  # what is raised holds all frames, so that nothing is collected yet
        assert [list(worker.sent) for worker in workers.workers] == [[], []]
        with pytest.raises(InvalidFile, match="no room"):
            localize(graph, CONCEPT, LocoGen(), LatentShare(), executor=workers, **ONCE)
        assert [list(worker.sent) for worker in workers.workers] == [[], []]

    @pytest.mark.parametrize("kind", UNSENDABLE, ids=lambda kind: kind.__name__)
    def test_what_cannot_be_pickled_is_refused_whatever_it_raises(self, kind, workers, graph):
        metric = ray_parts.Unsendable(kind("not me"))
        with pytest.raises(InvalidInput, match=r"what the tasks share .* cannot be sent to workers: .*not me; give objects that can be"):
            evaluate(graph, {}, ["a cup"], [0], metric, executor=workers, quiet=True, **SMALL)

    def test_an_interrupt_keeps_what_is_done(self, workers, graph, tmp_path, monkeypatch):
        options = SMALL | {"seeds": [0, 1, 2], "controls": False, "batch_size": 1, "quiet": True}
        take, taken = Sending._take, []

        def interrupt(sending, worker):
            taken.append(worker)
            if len(taken) > 2:
                raise KeyboardInterrupt
            return take(sending, worker)

        monkeypatch.setattr(Sending, "_take", interrupt)
        asked = graph, {"none": None}, CONCEPT.present
        with pytest.raises(KeyboardInterrupt):
            evaluate(*asked, metrics=Corner(), executor=workers, output=tmp_path / "scores.jsonl", **options)
        monkeypatch.undo()
        with tiny.counted(graph.denoiser) as calls:
            alone = evaluate(*asked, metrics=Corner(), output=tmp_path / "scores.jsonl", **options)
        assert len(calls) == 4 * SMALL["num_inference_steps"]
        pd.testing.assert_frame_equal(evaluate(*asked, metrics=Corner(), executor=workers, **options), alone, check_exact=True)

    def test_a_lost_worker_is_started_again_and_its_tasks_are_made(self, workers, graph):
        for worker in workers.workers:
            ray.kill(worker.actor, no_restart=worker.number == 0)
        options = SMALL | {"controls": False, "batch_size": 1, "quiet": True}
        alone, found = (
            evaluate(graph, {"none": None}, ["a cup"], [0, 1], Corner(), executor=each, **options) for each in (Local(), workers)
        )
        pd.testing.assert_frame_equal(found, alone, check_exact=True)

    def test_what_cannot_be_sent_is_refused(self, workers, graph):
        class Local:
            name = "local"

            def __init__(self):
                self.file = sys.stdout

            def __call__(self, images, prompts):
                return np.zeros(len(images))

        with pytest.raises(InvalidInput, match="what the tasks share .* cannot be sent to workers: .*; give objects that can be pickled"):
            evaluate(graph, {}, ["a cup"], [0], Local(), executor=workers, quiet=True, **SMALL)

    def test_a_full_object_store_is_said(self, workers, graph, monkeypatch):
        def refuse(_value):
            raise ray.exceptions.ObjectStoreFullError("no room for 3 bytes")

        monkeypatch.setattr(ray, "put", refuse)
        with pytest.raises(InvalidInput, match="Ray's object store has no room for what the tasks share .*: .*no room for 3 bytes"):
            evaluate(graph, {}, ["a cup"], [0], Corner(), executor=workers, quiet=True, **SMALL)

    @pytest.mark.parametrize(
        ("pipeline", "error", "said"),
        [
            (ray_parts.other_pipeline, InvalidInput, r"the worker in process \d+ on .* has other weights than this process"),
            (ray_parts.refused_pipeline, InvalidInput, "there is no such model"),
            (ray_parts.missing_pipeline, TasksFailed, "no worker is there, and 1 of 1 task left: FileNotFoundError: no such folder"),
        ],
        ids=["other weights", "refused", "missing"],
    )
    def test_a_worker_without_the_same_model_is_refused(self, pipeline, error, said, cluster, graph):
        with pytest.raises(error, match=said):
            evaluate(graph, {}, ["a cup"], [0], Corner(), executor=Ray(workers=1, pipeline=pipeline), quiet=True, **SMALL)


class TestPlacement:
    def test_a_replica_has_a_gpu_of_its_own(self, workers, graph):
        options = SMALL | {"controls": False, "batch_size": 1, "quiet": True}
        until, seen = time.monotonic() + 120, set()
        while seen != {0, 1} and time.monotonic() < until:  # on a busy machine one of them is there long before the other
            table = evaluate(graph, {"none": None}, ["a cup"], range(4), ray_parts.Device(), executor=workers, **options)
            seen |= set(table["score"])
        assert seen == {0, 1}

    def test_what_the_cluster_can_never_provide_is_refused_before_the_first_task(self, cluster, graph):
        for options, asked in (
            (
                {"workers": 3, "gpus_per_worker": 1},
                "room for 2 workers of 1 CPU, 1 GPU each, not for 3: its nodes have 8 CPU, 2 GPU",
            ),
            ({"workers": 5, "gpus_per_worker": 0.5}, "room for 4 workers of 1 CPU, 0.5 GPU each, not for 5"),
            ({"workers": 3, "threads": 4}, "room for 2 workers of 4 CPU each, not for 3"),
            ({"workers": 2, "resources": {"rare": 1}}, "room for 1 worker of 1 CPU, 1 rare each, not for 2"),
            ({"resources": {"huge": 1}}, "room for 0 workers of 1 CPU, 1 huge each, not for 1: its nodes have 8 CPU, 0 huge"),
        ):
            with tiny.counted(graph.denoiser) as calls, pytest.raises(InvalidInput, match=f"the cluster has {asked}"):
                evaluate(graph, {}, ["a cup"], [0], Corner(), executor=Ray(pipeline=ray_parts.pipeline, **options), quiet=True, **SMALL)
            assert calls == []

    @pytest.mark.parametrize(("gpus", "room"), [(1, 5), (0.5, 10), (0.3, 15), (2, 2), (3, 1), (4, 0)])
    def test_a_worker_lies_on_one_node(self, gpus, room):
        nodes = [{"Alive": alive, "Resources": {"CPU": 64.0, "GPU": held}} for held, alive in ((2.0, True), (3.0, True), (8.0, False))]
        need = {"CPU": 1.0, "GPU": gpus}
        if room:
            assert check_room(SimpleNamespace(nodes=lambda: nodes), need, None) == room
        with pytest.raises(InvalidInput, match=f"room for {room} worker{'s' * (room != 1)} "):
            check_room(SimpleNamespace(nodes=lambda: nodes), need, room + 1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"workers": 0}, "workers=0"),
            ({"threads": 1.5}, "threads=1.5"),
            ({"address": ""}, "address"),
            (
                {"address": "ray://head:10001"},
                r"address='ray://head:10001' is that of Ray's client, which is not supported; run on",
            ),
            ({"gpus_per_worker": -1}, "gpus_per_worker=-1"),
            (
                {"gpus_per_worker": 1.5},
                "gpus_per_worker=1.5 is neither a fraction of one GPU nor a whole number of them",
            ),
            ({"pipeline": "testbed:sd1"}, "pipeline='testbed:sd1' is no function; give one without arguments that makes the pipeline"),
            ({"resources": ["rare"]}, r"resources=\['rare'\] are no mapping; give amounts by name"),
            ({"resources": {"GPU": 1}}, "resources names GPU, which has an option of its own; give threads or gpus_per_worker"),
            ({"resources": {"rare": -1}}, "the resource 'rare'=-1"),
        ],
    )
    def test_a_value_that_is_not_allowed(self, options, said, untyped):
        with pytest.raises(InvalidInput, match=said):
            Ray(**options)

    def test_a_pipeline_made_by_hand_needs_a_function(self, graph):
        with pytest.raises(InvalidInput, match=r"it was made by hand, .* give ns.Ray\(pipeline=...\) a function"):
            evaluate(graph, {}, ["a cup"], [0], Corner(), executor=Ray(), quiet=True, **SMALL)

    def test_no_ray(self, graph, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(InvalidInput, match="ray is not installed; run pip install ray"):
            evaluate(graph, {}, ["a cup"], [0], Corner(), executor=Ray(pipeline=ray_parts.pipeline), quiet=True, **SMALL)

    def test_another_cluster(self, cluster, graph):
        with pytest.raises(InvalidInput, match=r"connected to Ray at .*, not to '192.0.2.1:6379'; call ray.shutdown\(\)"):
            evaluate(graph, {}, ["a cup"], [0], Corner(), executor=Ray(address="192.0.2.1:6379", pipeline=ray_parts.pipeline), **SMALL)

    @pytest.mark.parametrize(
        "error",
        [ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError, ray.exceptions.RaySystemError],
        ids=lambda error: error.__name__,
    )
    def test_a_cluster_that_does_not_answer_or_asks_for_another_token(self, error, monkeypatch):
        def refuse(**_options):
            raise error("not you")

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", refuse)
        with pytest.raises(InvalidInput, match=r"no Ray cluster is reached at address 'head:6379': .*not you"), connected("head:6379"):
            pass

    def test_a_difference_between_processes_is_named_with_its_remedy(self):
        here = Identity("a", "cpu", 1, ("python 3.11", "torch 2.10"))
        here.check(Identity(*vars(here).values()), "worker")
        for found, said in (
            (
                Identity("b", "cpu", 1, here.versions),
                r"worker has other weights .* \(b, not a\), .* give ns.Ray\(pipeline=...\)",
            ),
            (Identity("a", "cuda", 1, here.versions), r"other device than this process \(cuda, not cpu\), .* give gpus_per_worker"),
            (Identity("a", "cpu", 2, here.versions), r"other threads than this process \(2, not 1\), .* give threads="),
            (
                Identity("a", "cpu", 1, ("python 3.11", "torch 2.9")),
                r"versions .* \(torch 2.9, not torch 2.10\), .* install the same",
            ),
        ):
            with pytest.raises(InvalidInput, match=said):
                here.check(found, "worker")


def test_the_bar_says_how_many_workers_are_there(workers, graph, capsys):
    evaluate(graph, {"none": None}, ["a cup"], [0, 1], Corner(), controls=False, executor=workers, **SMALL)
    said = capsys.readouterr().err
    assert "2/2" in said
    assert re.search("[12] of 2 workers", said)


def test_a_pipeline_with_a_name_needs_no_function_and_the_end_says_what_each_worker_has_made(cluster, capsys):
    graph = HookGraph(testbed.load("sd1"))
    asked = graph, {"none": None}, ["a red circle"], [0, 1], Corner()
    found = evaluate(*asked, controls=False, executor=Ray(workers=1), num_inference_steps=1)
    assert re.search(r"worker 0, process \d+ on .*: 2 images, [0-9.]+ a second, busy \d+% of \d+ s", capsys.readouterr().err)
    alone = evaluate(*asked, controls=False, quiet=True, num_inference_steps=1)
    pd.testing.assert_frame_equal(found, alone, check_exact=True)


def test_the_dashboards_link():
    made = {"": "", "127.0.0.1:8265": "http://127.0.0.1:8265"}
    assert {url: dashboard(SimpleNamespace(init=lambda url=url, **_: SimpleNamespace(dashboard_url=url))) for url in made} == made


def test_an_executor_is_data():
    executor = Ray(workers=2, pipeline=ray_parts.pipeline)
    assert pickle.loads(pickle.dumps(executor)) == executor
