"""A worker's process: what it compares with the caller's before it makes an image, and what it takes over from it."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from neuroscope import HookGraph, InvalidInput
from neuroscope.generation.batches import Row, Sweep
from neuroscope.generation.executors import Task, Work
from neuroscope.generation.executors.replica import Identity, Numerics, Replica, versions_here
from neuroscope.generation.executors.sending import Sending
from neuroscope.generation.executors.worker import Sent, Worker
from neuroscope.generation.ledgers.run_conditions import RunConditions
from tests import ray_parts
from tests.localization.planted import SMALL


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return ray_parts.graph()


@pytest.fixture(scope="module")
def here(graph) -> Identity:
    return Identity.of(graph, torch.get_num_threads())


def never() -> None:
    raise AssertionError("the model was loaded")


def other_versions() -> list[tuple[str, ...]]:
    """Those of a caller with one package of another version, in turn, and of one that compares another list of packages."""
    found = versions_here()
    changed = [(*found[:number], f"{name.split()[0]} 0.0", *found[number + 1 :]) for number, name in enumerate(found)]
    return [*changed, found[:-1], (*found, "another 1.0")]


@pytest.mark.parametrize("versions", other_versions(), ids=str)
def test_another_version_of_any_package_is_refused_by_name_before_the_model_is_loaded(versions, here):
    replica = Replica(never, replace(here, versions=versions), Numerics.here())
    there, expected = next(
        (one, other) for one, other in zip((*versions_here(), "nothing"), (*versions, "nothing", "nothing"), strict=False) if one != other
    )
    there = re.escape(there)
    said = rf"the worker in process \d+ on .* has other versions than this process \({there}, not {expected}\), .*; install the same"
    with pytest.raises(InvalidInput, match=said):
        replica.start()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"device": "cuda: T"}, r"other device than this process \(cpu: .*, not cuda: T\), .*; give gpus_per_worker, .* resources="),
        ({"weights": "0"}, r"other weights than this process \(.*, not 0\), .*; if the pipeline was changed after it was loaded"),
    ],
    ids=["device", "weights"],
)
def test_another_processor_and_other_weights_are_refused_by_name(other, said, here):
    with pytest.raises(InvalidInput, match=said):
        Replica(ray_parts.pipeline, replace(here, **other), Numerics.here()).start()


def test_workers_are_compared_by_all_that_ledgers_keep_of_a_run(graph, here):
    conditions = RunConditions.of(graph)
    assert (here.device, here.threads) == (conditions.device, conditions.threads)
    assert {f"{name} {found}" for name, found in conditions.packages.items()} <= set(here.versions)


def test_a_worker_computes_with_the_callers_settings(here):
    before = Numerics.here()
    flags = [not each for each in vars(before).values() if isinstance(each, bool)]
    others = Numerics("medium", *flags, attention=(False, False, True, False))
    try:
        Replica(ray_parts.pipeline, here, others).start()
        assert Numerics.here() == others
    finally:
        before.set()
    assert Numerics.here() == before


class Cancelled(Exception):
    """Raised where Ray is asked to cancel a task."""


def test_what_is_left_is_dropped_without_a_word_to_ray_once_that_is_closed(graph):
    """Ray starts a new cluster where it is asked to cancel a task and none is there."""

    def cancel(_reference: object) -> None:
        raise Cancelled

    ray = SimpleNamespace(
        put=lambda value: value,
        cancel=cancel,
        is_initialized=lambda: False,
        exceptions=SimpleNamespace(ObjectStoreFullError=Cancelled, OutOfDiskError=Cancelled),
    )
    worker = Worker(0, lambda: None, sent=[Sent("first", 0), Sent("second", 1)])
    work = Work(Sweep(graph, ["a cup"], SMALL, batch_size=1), quiet=True)
    sending = Sending(ray, [worker], work, [Task((Row("a cup", 0),), ("a cup",))] * 2, lambda _: None)
    sending._withdraw()
    assert not worker.sent
    ray.is_initialized = lambda: True
    worker.sent = [Sent("first", 0), Sent("second", 1)]
    with pytest.raises(Cancelled):
        sending._withdraw()
