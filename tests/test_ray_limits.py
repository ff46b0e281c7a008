"""A cluster whose object store is full, and one whose machines have other versions: said by name, and nothing wrong is made."""

import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest

from neuroscope import HookGraph, InvalidInput, Ray, evaluate
from tests import ray_parts
from tests.localization.planted import SMALL, Corner

ray = pytest.importorskip("ray", reason="ray has no build for this Python")
#: The smallest store that Ray allows, in bytes.
STORE = 80 * 2**20


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return ray_parts.graph()


def begin(**options) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, **options)


@pytest.fixture
def full() -> Iterator[None]:
    """A cluster with a small store that may not go on to the disk, as where that is full too."""
    begin(object_store_memory=STORE, _system_config={"local_fs_capacity_threshold": 0.0})
    yield
    ray.shutdown()


@pytest.fixture
def elsewhere(tmp_path) -> Iterator[None]:
    """A cluster whose workers find another version of a package."""
    (tmp_path / "diffusers-0.0.dist-info").mkdir()
    (tmp_path / "diffusers-0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.0\n")
    path = ":".join([str(tmp_path), *(each for each in sys.path if Path(each).is_dir())])
    begin(runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()


class Heavy(Corner):
    """A metric that holds more than the store."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "weights", np.ones(STORE + 2**20, dtype=np.uint8))


def test_a_full_object_store_is_said_by_name_and_the_next_call_goes_on(full, graph):
    with Ray(workers=1, pipeline=ray_parts.pipeline).open(graph) as workers:
        with pytest.raises(InvalidInput, match=r"Ray's object store has no room for what the tasks share .* Start Ray with a larger one"):
            evaluate(graph, {}, ["a cup"], [0], Heavy(), executor=workers, quiet=True, **SMALL)
        found = evaluate(graph, {}, ["a cup"], [0], Corner(), executor=workers, quiet=True, **SMALL)
    assert found.equals(evaluate(graph, {}, ["a cup"], [0], Corner(), quiet=True, **SMALL))


def test_a_worker_with_another_version_of_a_package_is_refused_by_name_before_it_loads_a_model(elsewhere, graph):
    differ = rf"\(diffusers 0.0, not diffusers {diffusers.__version__}\)"
    said = rf"the worker in process \d+ on .* has other versions than this process {differ}, .* install the same"
    with pytest.raises(InvalidInput, match=said):
        evaluate(graph, {}, ["a cup"], [0], Corner(), executor=Ray(workers=1, pipeline=ray_parts.missing_pipeline), quiet=True, **SMALL)
