"""The options of commands that sweep over images: where these are made, where their scores are kept, and which part of them is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import typer

from neuroscope.cli import choices, opening, values
from neuroscope.cli.options.shared import Printing, RunningInBatches
from neuroscope.core.errors import InvalidInput, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from neuroscope.core.results.quality import Plan
    from neuroscope.generation.executors import Executor, Shard
    from neuroscope.generation.ledgers import LedgerPlace
    from neuroscope.pipeline.graph import HookGraph


@dataclass(frozen=True)
class RunningSweeps(RunningInBatches):
    """How a command that sweeps over images runs, and where its images are made."""

    executor: Annotated[
        str, choices.option(choices.EXECUTORS, help="Where images are made: in this process, or by workers on a Ray cluster.")
    ] = "local"
    workers: Annotated[
        int | None, typer.Option(callback=values.whole(), help="With --executor ray: how many; by default as many as the cluster holds.")
    ] = None
    address: Annotated[
        str | None,
        typer.Option(callback=values.text(), help="With --executor ray: the cluster's; by default the one here, or else a new one here."),
    ] = None

    def stops_at_sweep(self, plan: Plan | None, graph: HookGraph, generation: Mapping[str, Any], ledger: LedgerOptions) -> bool:
        """See `stops_at`; a dry run also says tasks, the time of all workers or shards together, and the memory of each."""
        from neuroscope.generation.forecast import MEASURE, forecast

        if not self.dry_run:
            return self.stops_at(plan, graph.pipe)
        self.note_model(graph.pipe)
        rate = self.rate if self.rate in (None, MEASURE) else float(self.rate)
        workers = (self.workers or 1) * ledger.shards
        found = forecast(graph, plan, batch_size=self.batch_size, workers=workers, rate=cast("Any", rate), **generation)
        self.report(found.to_facts(), str(found))
        return True

    def open_executor(self) -> Executor:
        """Where images are made.

        Raises:
            InvalidInput: an unknown executor, or an option of workers without any.
        """
        from neuroscope.generation.executors import Local, Ray

        if choose("executor", self.executor, choices.EXECUTORS) == "ray":
            return Ray(workers=self.workers, address=self.address)
        for name in ("workers", "address"):
            if getattr(self, name) is not None:
                raise InvalidInput(f"--{name} would be ignored: images are made in this process; add --executor ray, or leave it out")
        return Local()


@dataclass(frozen=True)
class LedgerOptions:
    """Where finished images' scores are kept, and which part of the images is made."""

    panel: ClassVar[str] = "Ledger"
    resume: Annotated[
        str | None,
        typer.Option(callback=values.text(), help="Keep finished images' scores here, a folder or a URL (s3://...), and go on from it."),
    ] = None
    resume_anyway: Annotated[
        bool,
        typer.Option("--resume-anyway", help="Go on although rows were made on another device, or with other threads or package versions."),
    ] = False
    shard: Annotated[
        str | None,
        typer.Option(callback=values.text(), help="I/N: make the I-th of N parts of the images; --output is its ledger, for merge."),
    ] = None

    def check(self, output: Path | None, *inputs: Path | None) -> None:
        """Checks where results and scores go, before any work is done; see `opening.check_output`.

        Raises:
            InvalidFile: one of them cannot be written, or would overwrite an input.
            InvalidInput: options that do not go together, or no such shard.
        """
        if self.shard is None:
            if self.resume_anyway and self.resume is None:
                raise InvalidInput("--resume-anyway would be ignored: it is for the ledger of --resume; give that, or leave it out")
            opening.check_output(output, *inputs, opening.local_path(self.resume))
            opening.check_ledger(self.resume, *inputs)
            return
        if self.resume is not None:
            raise InvalidInput("--resume would be ignored: a shard's ledger is its --output, from which it goes on; leave --resume out")
        if output is None:
            raise InvalidInput("--shard needs --output, the folder or URL of the shard's ledger")
        self._part()

    def open(self, output: Path | None) -> LedgerPlace:
        """The ledger for a verb's `output`."""
        from neuroscope.generation.ledgers import ResumeAnyway

        where = self.resume if self.shard is None else opening.restored_url(str(output))
        return where if where is None or not self.resume_anyway else ResumeAnyway(where)

    def made_shard(self, printed: Printing, verb: Callable[..., Any], *args: Any, **options: Any) -> bool:
        """Makes the shard and prints what was made; False where none is asked for."""
        if self.shard is None:
            return False
        made = self._part().make(verb, *args, **options)
        facts = {"shard": str(made.shard), "tasks": made.tasks, "images": made.images, "output": made.output}
        printed.report(facts, f"{made}; join all with neuroscope merge")
        return True

    @property
    def shards(self) -> int:
        """Into how many shards the images are parted; 1 where they are not."""
        return 1 if self.shard is None else self._part().count

    def _part(self) -> Shard:
        from neuroscope.generation.executors import Shard

        return Shard.parse(self.shard or "")
