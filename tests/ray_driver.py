"""A process that makes an evaluation's images on a Ray cluster, to be killed: python -m tests.ray_driver ADDRESS FOLDER SECONDS."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from neuroscope import Ray, TasksFailed, evaluate
from neuroscope.generation.executors import Part, Task, Work, Workers
from tests import ray_parts
from tests.localization.planted import SMALL

PROMPTS = [f"a red circle {number}" for number in range(120)]
WORKERS = 2
FAILED = 3


class Noted(Workers):
    """Notes which prompts' scores the caller has kept."""

    def __init__(self, workers: Workers, log: str) -> None:
        self._workers, self._log = workers, log

    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        for number, part in self._workers.run(work, tasks, done):
            yield number, part
            ray_parts.note(self._log, "kept", [tasks[number].prompts[row] for row in part.numbers])


def main(address: str, folder: str, seconds: str) -> None:
    graph, log = ray_parts.graph(), f"{folder}/log"
    metric = ray_parts.Logged(log, float(seconds))
    options = SMALL | {"seeds": [0], "controls": False, "batch_size": 2, "quiet": True, "output": f"{folder}/scores.jsonl"}
    with Ray(address=address, workers=WORKERS, pipeline=ray_parts.pipeline).open(graph) as workers:
        table = evaluate(graph, {"none": None}, PROMPTS, metrics=metric, executor=Noted(workers, log), **options)
    pd.DataFrame(table).to_pickle(Path(folder) / "table.pickle")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except TasksFailed as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(FAILED)
