"""A replica of the model in a worker's process, which makes tasks that it is sent."""

from __future__ import annotations

import builtins
import copy
import os
import platform
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import zip_longest
from typing import Any, NamedTuple, Self

import torch

from neuroscope.core.distribution import version
from neuroscope.core.errors import InvalidInput, first_line
from neuroscope.generation.executors.tasks import Part, ShippedWork, Task, Work, perform
from neuroscope.generation.keys import fingerprint
from neuroscope.generation.ledgers.run_conditions import described
from neuroscope.generation.metering import metered
from neuroscope.pipeline.graph import HookGraph

#: The packages on whose versions the bits of an image depend.
_PACKAGES = ("torch", "diffusers", "transformers", "numpy")
#: The implementations of attention among which torch chooses on a GPU.
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")


@dataclass(frozen=True)
class Identity:
    """What must be the same in all processes for images to be the same to the bit.

    Attributes:
        weights: a hash of all that the pipeline's images depend on.
        device: the device's type, with the GPU's name, or with the instruction set that torch uses on the CPU.
        threads: torch's threads in one process.
        versions: of Python and of the packages.
    """

    weights: str
    device: str
    threads: int
    versions: tuple[str, ...]

    @classmethod
    def of(cls, graph: HookGraph, threads: int) -> Self:
        """What this process has."""
        return cls(fingerprint(graph), described(torch.device(graph.pipe._execution_device)), threads, versions_here())

    def check(self, found: Identity, where: str) -> None:
        """Compares a worker's identity with the one that was asked for.

        Raises:
            InvalidInput: they differ; the message names the first difference.
        """
        self.check_versions(found.versions, where)
        for name in ("device", "threads", "weights"):
            _compare(name, getattr(self, name), getattr(found, name), where)

    def check_versions(self, found: tuple[str, ...], where: str) -> None:
        """The same of versions alone, by which a worker is refused before it loads a model; raises InvalidInput."""
        for here, there in zip_longest(self.versions, found, fillvalue="nothing"):
            _compare("versions", here, there, where)


def versions_here() -> tuple[str, ...]:
    """This process's versions of Python and of the packages."""
    python = "python " + ".".join(platform.python_version_tuple()[:2])
    return (python, f"neuroscope {version()}", *(f"{name} {metadata.version(name)}" for name in _PACKAGES))


def _compare(name: str, here: object, there: object, where: str) -> None:
    if here != there:
        raise InvalidInput(f"{where} has other {name} than this process ({there}, not {here}), so its images would differ; {_REMEDY[name]}")


#: What to do about a difference.
_REMEDY = {
    "weights": "if the pipeline was changed after it was loaded, give ns.Ray(pipeline=...) a function that makes it as it is now, else "
    "load the same files there",
    "device": "give gpus_per_worker, or a pipeline on that device; resources= chooses machines of one kind",
    "threads": "give threads=",
    "versions": "install the same version there",
}


@dataclass(frozen=True)
class Numerics:
    """The settings of torch by which a result is rounded, and which processes do not share."""

    precision: str
    allow_tf32: bool
    benchmark: bool
    deterministic: bool
    algorithms: bool
    attention: tuple[bool, ...]

    @classmethod
    def here(cls) -> Self:
        """This process's settings."""
        cudnn = torch.backends.cudnn
        algorithms = torch.are_deterministic_algorithms_enabled()
        attention = tuple(bool(getattr(torch.backends.cuda, f"{name}_sdp_enabled")()) for name in _ATTENTION)
        return cls(torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, algorithms, attention)

    def set(self) -> None:
        """Makes them those of this process."""
        cudnn = torch.backends.cudnn
        torch.set_float32_matmul_precision(self.precision)
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = self.allow_tf32, self.benchmark, self.deterministic
        torch.use_deterministic_algorithms(self.algorithms)
        for name, enabled in zip(_ATTENTION, self.attention, strict=True):
            getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)


class Made(NamedTuple):
    """What a worker sends back of a task.

    Attributes:
        parts: what was made, in order; several where the task did not fit the memory.
        nfe: what it has cost.
        seconds: how long it took.
        warned: the kinds and texts of warnings.
    """

    parts: list[Part]
    nfe: int | float
    seconds: float
    warned: list[tuple[str, str]]


class Replica:
    """Holds one pipeline and makes tasks with it, one at a time.

    The pipeline is loaded and checked when it is first needed, so that a process that was started again does the same.

    Args:
        load: makes the pipeline.
        expected: what the process must be for its images to be those of the caller.
        numerics: the caller's settings of torch.
    """

    def __init__(self, load: Callable[[], Any], expected: Identity, numerics: Numerics) -> None:
        self._load, self._expected, self._numerics = load, expected, numerics
        self._graph: HookGraph | None = None
        self._work: tuple[Any, Work] | None = None

    def start(self) -> str:
        """Loads the pipeline; gives back where it is.

        Raises:
            InvalidInput: its images would differ from the caller's.
        """
        with _rebuilt_elsewhere():
            self._on_graph()
        return self._where

    def make(self, shipped: Iterable[Any], task: Task) -> Made:
        """Makes one task.

        Args:
            shipped: Ray's reference to what the task shares with others, in a list, so that it is fetched once.
            task: what to make.
        """
        with _rebuilt_elsewhere(), warnings.catch_warnings(record=True) as caught, metered(self._on_graph().denoiser) as meter:
            warnings.simplefilter("always")
            parts = list(perform(self._on_replica(*shipped), task))
        warned = [(each.category.__name__, str(each.message)) for each in caught if _is_shown(each.category)]
        return Made(parts, meter.cost.nfe, meter.cost.seconds, warned)

    def _on_replica(self, reference: Any) -> Work:
        if self._work is None or self._work[0] != reference:
            shipped = reference if isinstance(reference, ShippedWork) else _fetch(reference)
            self._work = reference, shipped.on(self._on_graph())
        return self._work[1]

    @property
    def _where(self) -> str:
        return f"process {os.getpid()} on {socket.gethostname()}"

    def _on_graph(self) -> HookGraph:
        """The model, loaded when it is first needed."""
        if self._graph is None:
            self._graph = self._open()
        return self._graph

    def _open(self) -> HookGraph:
        where = f"the worker in {self._where}"
        self._expected.check_versions(versions_here(), where)
        torch.set_num_threads(self._expected.threads)
        self._numerics.set()
        pipe = self._load()
        pipe.set_progress_bar_config(disable=True)
        graph = HookGraph(pipe)
        self._expected.check(Identity.of(graph, torch.get_num_threads()), where)
        return graph


@contextmanager
def _rebuilt_elsewhere() -> Iterator[None]:
    """Raises an error that another process could not rebuild as a RuntimeError with its name and text."""
    try:
        yield
    except Exception as error:
        try:
            copy.deepcopy(error)
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from None
        raise


def _fetch(reference: Any) -> ShippedWork:
    import ray

    shipped: ShippedWork = ray.get(reference)
    return shipped


def _is_shown(category: type[Warning]) -> bool:
    """Whether a warning is the caller's concern."""
    return issubclass(category, UserWarning | RuntimeWarning)


def warning_of(name: str) -> type[Warning]:
    """A kind of warning by its name, as far as Python has it."""
    found = getattr(builtins, name, UserWarning)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
