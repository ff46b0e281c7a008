"""Shared fixtures: one tiny pipeline with its graph, a concept and a recording, all made once."""

import os
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from neuroscope import Concept, HookGraph, Recording, record
from tests.families import tiny

if threads := os.environ.get("OMP_NUM_THREADS") or ("1" if "PYTEST_XDIST_WORKER" in os.environ else ""):
    torch.set_num_threads(int(threads))

OBJECTS = ("circle", "square", "triangle", "star", "cross", "ring")


@pytest.fixture(scope="session")
def pipe() -> StableDiffusionPipeline:
    return tiny.sd1()


@pytest.fixture(scope="session")
def graph(pipe) -> HookGraph:
    return HookGraph(pipe)


@pytest.fixture
def fresh() -> StableDiffusionPipeline:
    """A pipeline that a test may spoil."""
    return tiny.sd1()


@pytest.fixture(scope="session")
def concept() -> Concept:
    return Concept(
        "stipple",
        present=[f"a red {shape} in the style of stipple" for shape in OBJECTS],
        absent=[f"a red {shape} in the style of plain" for shape in OBJECTS],
        test=["stipple style, a blue star", "a green ring drawn in a stipple manner"],
    )


@pytest.fixture(scope="session")
def recording(graph, concept) -> Recording:
    return record(graph, concept, keep_samples=True, quiet=True)


@pytest.fixture(scope="session")
def untouched(pipe) -> Tensor:
    """The final latents of the pipeline as it is."""
    return tiny.draw(pipe)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Users run without type checks at run time: the package's own messages must catch their mistakes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch, untyped):
    """A function that runs a command line in an empty folder, and gives its exit status, what it printed, and its errors."""
    from neuroscope.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(each) for each in arguments])
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture(autouse=True)
def shared_pipeline_stays_as_it_was(request) -> Iterator[None]:
    yield
    if "pipe" in request.fixturenames:
        assert tiny.hooks(request.getfixturevalue("pipe")) == []
