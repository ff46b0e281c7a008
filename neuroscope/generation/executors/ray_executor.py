"""The executor of many GPUs and machines: Ray."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, first_line
from neuroscope.generation.executors.cluster import check_room, connected, dashboard
from neuroscope.generation.executors.executor import Executor, Workers
from neuroscope.generation.executors.replica import Identity, Numerics, Replica
from neuroscope.generation.executors.sending import UNSENDABLE, Sending
from neuroscope.generation.executors.tasks import Part, Task, Work
from neuroscope.generation.executors.worker import Worker, throughput
from neuroscope.generation.ledgers import RunConditions
from neuroscope.generation.metering import count_elsewhere
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.loading import recipe_of


@dataclass(frozen=True, kw_only=True)
class Ray(Executor):
    """Makes images on many GPUs and machines: one replica of the model in each worker, which Ray places and starts again if it is lost.

    Results are those of `Local()` to the bit, at equal device type, threads a process and versions of packages, whatever the number of
    workers. Each worker loads the pipeline again, and its content is compared with the caller's before it makes an image. Lost workers'
    tasks are made by others; a task that fails three times is reported once all others are made.

    Attributes:
        address: of the cluster; by default the one that runs on this machine, or else a new one on this machine.
        workers: how many; by default as many as the cluster has room for.
        gpus_per_worker: GPUs for each worker, or a fraction of one; by default one if the pipeline is on "cuda", else none.
        threads: torch's threads in each worker, which takes as many CPUs; by default those of this process, or one if the pipeline is on
            a GPU.
        pipeline: a function without arguments that makes the pipeline in a worker; by default it is loaded there by its name, with its
            LoRAs and number format.
        resources: what else each worker takes, by the names that the cluster's nodes were started with.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    threads: int | None = None
    pipeline: Callable[[], Any] | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.address is not None:
            checks.text("address", self.address, 'such as "auto" or "ray://head:10001"')
        for name in ("workers", "threads"):
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name), least=1)
        if self.gpus_per_worker is not None:
            _check_gpus(self.gpus_per_worker)
        if self.pipeline is not None and not callable(self.pipeline):
            raise InvalidInput(f"pipeline={checks.shown(self.pipeline)} is no function; give one without arguments that makes the pipeline")
        if not isinstance(self.resources, Mapping):
            raise InvalidInput(f"resources={checks.shown(self.resources)} are no mapping; give amounts by name, such as {{'highmem': 1}}")
        for name, amount in self.resources.items():
            if name in ("CPU", "GPU"):
                raise InvalidInput(f"resources names {name}, which has an option of its own; give threads or gpus_per_worker")
            checks.finite(f"the resource {name!r}", amount, least=0)

    @contextmanager
    def open(self, graph: HookGraph) -> Iterator[Workers]:
        """A block with workers, which several calls can share: `with ns.Ray().open(graph) as workers: ...`.

        Args:
            graph: the model.

        Raises:
            InvalidInput: the pipeline cannot be loaded again by its name, no cluster is reached, or it can never hold the workers.
        """
        load = self.pipeline or recipe_of(graph.pipe)
        need, threads = self._need(graph), self._threads(graph)
        with connected(self.address) as ray:
            count = check_room(ray, need, self.workers)
            expected = Identity.of(graph, threads)
            begin = partial(_begin, ray, need, load, expected)
            opened = RayWorkers(ray, begin, count, partial(count_elsewhere, graph.denoiser), self.conditions(graph))
            try:
                yield opened
            finally:
                opened.close()

    def conditions(self, graph: HookGraph) -> RunConditions:
        """See `Executor.conditions`: those of this process, which workers are checked against, but for their threads."""
        return replace(super().conditions(graph), threads=self._threads(graph))

    def _threads(self, graph: HookGraph) -> int:
        on_cpu = graph.pipe._execution_device.type == "cpu"
        return self.threads or (torch.get_num_threads() if on_cpu else 1)

    def _need(self, graph: HookGraph) -> dict[str, float]:
        """What each worker takes, by Ray's names."""
        gpus = self.gpus_per_worker
        if gpus is None:
            gpus = float(graph.pipe._execution_device.type == "cuda")
        return {"CPU": float(self._threads(graph)), **({"GPU": gpus} if gpus else {}), **self.resources}


class RayWorkers(Workers):
    """Workers that are there, or are about to be; see `Ray`.

    Args:
        ray: the package, connected.
        begin: starts an actor with a replica of the model.
        count: how many workers to start.
        count_rows: told the NFE of each task that was made.
        made_under: the conditions of their images; by default those of this process.
    """

    def __init__(
        self,
        ray: Any,
        begin: Callable[[], Any],
        count: int,
        count_rows: Callable[[int | float], None],
        made_under: RunConditions | None = None,
    ) -> None:
        self._made_under = made_under
        self.workers = [Worker(number, begin) for number in range(count)]
        self._ray, self._count_rows = ray, count_rows
        self._is_shown = False
        for worker in self.workers:
            worker.start()

    def conditions(self, graph: HookGraph) -> RunConditions:
        """See `Executor.conditions`."""
        return self._made_under or super().conditions(graph)

    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        """See `Workers.run`.

        Raises:
            InvalidInput: a worker's images would differ from those of this process, or something cannot be sent to workers.
            TasksFailed: some tasks failed three times, while all others are made; or no worker is there.
        """
        if not work.quiet and not self._is_shown:
            self._is_shown = True
            if link := dashboard(self._ray):
                tqdm.write(f"Ray's dashboard: {link}", file=sys.stderr)
        yield from Sending(self._ray, self.workers, work, tasks, self._count_rows).results(done)

    def close(self) -> None:
        """Ends all workers, within the task that each makes; says what each has done, unless the work was quiet."""
        if self._is_shown:
            for line in throughput(self.workers):
                tqdm.write(line, file=sys.stderr)
        for worker in self.workers:
            if worker.actor is not None:
                self._ray.kill(worker.actor)


def _begin(ray: Any, need: Mapping[str, float], load: Callable[[], Any], expected: Identity) -> Any:
    """An actor with a replica of the model. It keeps its place while it is started again."""
    others = {name: amount for name, amount in need.items() if name not in ("CPU", "GPU")}
    options = {"num_cpus": need["CPU"], "num_gpus": need.get("GPU", 0), "resources": others, "max_restarts": -1}
    try:
        return ray.remote(Replica).options(**options).remote(load, expected, Numerics.here())
    except UNSENDABLE as error:
        raise InvalidInput(f"pipeline={load!r} cannot be sent to workers: {first_line(error)} Give a function of a module") from error


def _check_gpus(gpus: Any) -> None:
    """Raises InvalidInput for what is no number of GPUs that Ray gives."""
    checks.finite("gpus_per_worker", gpus, least=0)
    if gpus > 1 and not math.isclose(gpus, round(gpus)):
        raise InvalidInput(f"gpus_per_worker={gpus:g} is neither a fraction of one GPU nor a whole number of them; give one of these")
