"""What workers on a Ray cluster cost beside bare processes, how busy many of them are kept, and what follows for larger clusters.

python -m benchmarks.scale    (the bundled model on two cores, a few minutes; --images 8 --rounds 1 for a quick look)
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import psutil
import ray
import torch

import neuroscope as ns
from neuroscope.core.errors import counted
from neuroscope.generation.batches import Row, Sweep
from neuroscope.generation.executors import Part, Task, Work, Workers
from neuroscope.generation.executors.ray_executor import RayWorkers
from neuroscope.generation.executors.replica import Made
from neuroscope.generation.executors.tasks import perform

PROMPT = "a red circle in the style of stipple"
#: As many as two cores hold with one thread each.
PROCESSES = 2
#: The goals: of what two bare processes reach, of one process's speed, of a task's time, of all workers' time.
GOALS = {"of two bare processes": 0.97, "times one bare process": 1.9, "of a task's time": 0.02, "busy": 0.95}
SLEEPERS, ACTORS, SLEEPS = 200, 4, 20


def main() -> None:
    asked = _asked()
    torch.set_num_threads(1)
    os.environ.update(RAY_worker_niceness=str(os.nice(0)))  # Ray's own is 15, so that on a busy machine its workers would come last
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    work = Work(Sweep(graph, [PROMPT], ns.testbed.GENERATION, batch_size=asked.batch_size, space="latent"), quiet=True)
    task = Task((Row(PROMPT, 0),) * asked.batch_size, (PROMPT,) * asked.batch_size)
    with ns.Ray(workers=PROCESSES, threads=1).open(graph) as workers, bare_processes(asked.batch_size) as bare:
        workers_against_processes(workers, work, task, bare, asked)
    overhead(work, task, asked)
    caller = handling(work)
    print(f"the caller handles a result in {1000 * caller:.2f} ms, so that it keeps up with {1 / caller:.0f} tasks a second")
    simulated = simulate(Cluster(SLEEPERS, 1.0, spread=0.0, start=0.0, handling=caller), SLEEPERS * SLEEPS)
    print(f"simulated: {SLEEPERS} workers with tasks of one second are {simulated.busy:.1%} busy")
    print(f"{SLEEPERS} concurrent sleeps of one second in {ACTORS} actors: {busy_sleeping():.1%} busy (goal {GOALS['busy']:.0%})")
    ray.shutdown()


def workers_against_processes(workers: Workers, work: Work, task: Task, bare: Callable[[int, int], float], asked: Any) -> None:
    """Times workers, two bare processes and one, in turn, on the same images, by the clock and by the processors' time."""
    count = asked.images // asked.batch_size
    _seconds(workers, work, [task] * PROCESSES), bare(1, PROCESSES)  # all are loaded and warm
    rounds = []
    for _ in range(asked.rounds):
        with processors(of_bare=False) as of_workers:
            by_ray = _seconds(workers, work, [task] * count)
        with processors(of_bare=True) as of_two:
            two = bare(count // PROCESSES, PROCESSES)
        one = bare(count // PROCESSES, 1) * PROCESSES
        rounds.append((two / by_ray, one / by_ray, of_two[0] / of_workers[0]))
        print(f"{counted(asked.images, 'image')}: workers {by_ray:.2f} s, two bare processes {two:.2f} s, one {one:.2f} s")
    of_two_name, of_one_name, *_ = GOALS
    for name, ratios in zip(
        (of_two_name, of_one_name, "of two bare processes, by processors' time"), zip(*rounds, strict=True), strict=True
    ):
        goal = GOALS.get(name, GOALS[of_two_name])
        print(f"two workers: {np.median(ratios):.3f} {name} (goal {goal}; from {min(ratios):.3f} to {max(ratios):.3f})")


@contextmanager
def processors(of_bare: bool) -> Iterator[list[float]]:
    """The processors' seconds, in a list, that the bare processes take inside the block, or else this process and all others below it.

    On a machine that does other work too, these tell what an unshared one would need.
    """
    found: list[float] = []
    before = _spent(of_bare)
    yield found
    found.append(sum(after - before.get(pid, 0.0) for pid, after in _spent(of_bare).items()))


def _spent(of_bare: bool) -> dict[int, float]:
    """By process, the processors' seconds so far."""
    bare = {each.pid for each in multiprocessing.active_children()}
    me = psutil.Process()
    every = [me, *me.children(recursive=True)]
    return {each.pid: sum(each.cpu_times()[:2]) for each in every if (each.pid in bare) == of_bare}


@contextmanager
def bare_processes(size: int) -> Iterator[Callable[[int, int], float]]:
    """Two processes of one thread with the pipeline alone; a call times so many batches in each of some of them."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(PROCESSES)]
    processes = [context.Process(target=_draw_when_asked, args=(there, size), daemon=True) for _, there in pipes]
    for process in processes:
        process.start()

    def run(batches: int, count: int) -> float:
        start = time.perf_counter()
        for here, _ in pipes[:count]:
            here.send(batches)
        for here, _ in pipes[:count]:
            here.recv()
        return time.perf_counter() - start

    yield run
    for process in processes:
        process.terminate()


def _draw_when_asked(asked: Any, size: int) -> None:
    """A bare process: the pipeline's own call, on as many batches as it is asked for."""
    torch.set_num_threads(1)
    pipe = ns.testbed.load("sd1")
    while True:
        for _ in range(asked.recv()):
            noise = [torch.Generator().manual_seed(0) for _ in range(size)]
            pipe([PROMPT] * size, generator=noise, output_type="latent", **ns.testbed.GENERATION)
        asked.send("done")


def _seconds(workers: Workers, work: Work, tasks: Sequence[Task]) -> float:
    start = time.perf_counter()
    for _ in workers.run(work, tasks):
        pass
    return time.perf_counter() - start


def overhead(work: Work, task: Task, asked: Any) -> None:
    """What the executor adds to a task: its sending, and the taking in of as many latents."""
    start = time.perf_counter()
    parts = list(perform(work, task))
    alone = time.perf_counter() - start
    workers = RayWorkers(ray, lambda: ray.remote(Instant).options(num_cpus=0).remote(parts), 1, lambda _: None)
    _seconds(workers, work, [task] * 20)
    each = _seconds(workers, work, [task] * asked.tasks) / asked.tasks
    workers.close()
    sent, back, shared = (len(pickle.dumps(each)) for each in (task, parts, work.shipped))
    share = GOALS["of a task's time"]
    print(f"a task of {counted(len(task.rows), 'image')} takes {alone:.2f} s alone, and the executor {1000 * each:.2f} ms more:")
    print(f"{each / alone:.3%} of a task's time (goal at most {share:.0%})")
    print(f"bytes: {sent:,} sent for a task, {back:,} back, {shared:,} once for each worker")


def handling(work: Work, tasks: int = 2000) -> float:
    """How many seconds the caller needs for a result, where as many workers as there are cores have made everything already."""
    parts = [Part(range(1), {"score": [0.0]})]
    workers = RayWorkers(ray, lambda: ray.remote(Instant).options(num_cpus=0).remote(parts), PROCESSES, lambda _: None)
    task = Task((Row(PROMPT, 0),), (PROMPT,))
    _seconds(workers, work, [task] * 20)
    seconds = _seconds(workers, work, [task] * tasks)
    workers.close()
    return seconds / tasks


class Instant:
    """A replica that has made every task already."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def start(self) -> str:
        """Where it is."""
        return "a process"

    def make(self, _shared: list[Any], _task: Task) -> Made:
        """What is made of a task."""
        return Made(self._parts, 0, 0.0, [])


class Sleepers:
    """Replicas that sleep, many in one process: each makes one task at a time."""

    def __init__(self, count: int) -> None:
        self._turns = [threading.Lock() for _ in range(count)]

    def start(self) -> str:
        """Where they are."""
        return "a process"

    def sleep(self, number: int, rows: int) -> Made:
        """One of them sleeps for a second."""
        with self._turns[number]:
            time.sleep(1.0)
        return Made([Part(range(rows))], 0, 1.0, [])


class Sleeper:
    """One of an actor's sleepers, in place of an actor of its own."""

    def __init__(self, actor: Any, number: int) -> None:
        self.start, self.make = actor.start, self
        self._actor, self._number = actor, number

    def remote(self, _shared: list[Any], task: Task) -> Any:
        """Ray's reference to what it makes."""
        return self._actor.sleep.remote(self._number, len(task.rows))


def busy_sleeping() -> float:
    """Which share of their time many workers sleep, which is all that they do."""
    each = SLEEPERS // ACTORS
    actors = [ray.remote(Sleepers).options(num_cpus=0, max_concurrency=2 * each + 1).remote(each) for _ in range(ACTORS)]
    ray.get([actor.start.remote() for actor in actors])
    sleepers = iter([Sleeper(actor, number) for number in range(each) for actor in actors])
    workers = RayWorkers(ray, lambda: next(sleepers), SLEEPERS, lambda _: None)
    work = Work(Sweep(ns.HookGraph(ns.testbed.load("sd1")), [PROMPT], ns.testbed.GENERATION, batch_size=1), quiet=True)
    task = Task((Row(PROMPT, 0),), (PROMPT,))
    _seconds(workers, work, [task] * SLEEPERS)  # all are there
    seconds = _seconds(workers, work, [task] * (SLEEPERS * SLEEPS))
    for actor in actors:
        ray.kill(actor)
    return SLEEPS / seconds


@dataclass(frozen=True)
class Cluster:
    """What a simulated sweep runs on.

    Attributes:
        workers: how many.
        task: seconds that one takes on average.
        spread: the standard deviation of a task's time, as a share of it.
        start: seconds until a worker has loaded its replica.
        handling: seconds that the caller needs for each task, one after the other.
    """

    workers: int
    task: float
    spread: float = 0.05
    start: float = 60.0
    handling: float = 0.002


class Outcome(NamedTuple):
    """What a simulated sweep takes.

    Attributes:
        seconds: from the call to the last result.
        busy: the share of all workers' time in which they make tasks.
    """

    seconds: float
    busy: float


def simulate(cluster: Cluster, tasks: int, seed: int = 0) -> Outcome:
    """A sweep in which each worker holds the task that it makes and the next one, and the caller handles one result at a time."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.normal(cluster.task, cluster.spread * cluster.task, tasks), 0.0)
    waiting = iter(lengths)
    done: list[tuple[float, int]] = []
    queued: list[list[float]] = [[] for _ in range(cluster.workers)]
    for queue, each in zip([*queued, *queued], itertools.islice(waiting, 2 * cluster.workers), strict=False):
        queue.append(float(each))
    for number, each in enumerate(queued):
        if each:
            heapq.heappush(done, (cluster.start + each[0], number))
    caller = 0.0
    while done:
        ended, number = heapq.heappop(done)
        caller = max(caller, ended) + cluster.handling
        queue = queued[number]
        queue.pop(0)
        begins = ended if queue else caller  # the next task lies there already, unless there was none
        if (each := next(waiting, None)) is not None:
            queue.append(float(each))
        if queue:
            heapq.heappush(done, (begins + queue[0], number))
    return Outcome(caller, float(lengths.sum()) / (cluster.workers * caller))


def _asked() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=200, help="of which the overhead is the mean")
    return parser.parse_args()


if __name__ == "__main__":
    main()
