"""Evaluation: interventions × prompts × seeds × metrics, as one tidy table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image
from tqdm.auto import tqdm

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.intervention import Intervention
from neuroscope.core.results.quality import Plan
from neuroscope.core.results.scores import Neurons
from neuroscope.evaluation._table import COLUMNS, Evaluation
from neuroscope.generation.arguments import check_generation
from neuroscope.generation.batches import Row, Sweep
from neuroscope.generation.dry_run import plan_images
from neuroscope.generation.executors import Executor, Local, Part, Task, Work, Workers, make
from neuroscope.generation.foreign_hooks import only_watching
from neuroscope.generation.keys import digest, key_of, metric_key, origin
from neuroscope.generation.labels import label_made, settings_of
from neuroscope.generation.ledgers import Ledger, LedgerPlace, check_output, open_ledger
from neuroscope.generation.metering import metered
from neuroscope.interventions import NeuronMask
from neuroscope.metrics.metric import Metric, bind
from neuroscope.metrics.shares import Share
from neuroscope.pipeline.graph import HookGraph

Change = Intervention | Sequence[Intervention] | None


@dataclass(frozen=True)
class _Job:
    """One image: a named change, a prompt and a seed. The key says all that the image depends on."""

    name: str
    prompt: str
    seed: int
    key: str


def evaluate(
    graph: HookGraph,
    interventions: Mapping[str, Change] | Intervention,
    prompts: Sequence[str],
    seeds: Iterable[int] = range(4),
    metrics: Sequence[Metric] | Metric = (),
    *,
    controls: bool = True,
    batch_size: int | None = None,
    output: LedgerPlace = None,
    quiet: bool = False,
    executor: Executor = Local(),
    **generation: Any,
) -> pd.DataFrame:
    """Makes one image per intervention, prompt and seed, and scores it by every metric.

    An untouched row "none" is added if missing, and for every mask a control "NAME: random": as many random neurons of
    the same sites that the mask leaves alone, filled in the same way. Each image starts from noise of its own seed, so
    neither the batch size nor the other images change it.

    Args:
        graph: the model.
        interventions: names and changes: one intervention, several to be composed, or None for the untouched model. One intervention
            without a name is called by its kind, such as "neuron-mask".
        prompts: prompts that no neuron was chosen with.
        seeds: seeds of the initial noise.
        metrics: what to measure, one or several; see `Metric`.
        controls: whether to add "none" and the random controls.
        batch_size: images at a time; by default as many as fit half of the free memory, at most 64.
        output: a folder or URL, the ledger that keeps each finished image's scores; a run that was stopped goes on from it. A name that
            ends in .jsonl is one file.
        quiet: show no progress bar.
        executor: where images are made: `Local()`, or `Ray()` for many GPUs and machines.
        **generation: passed to the pipeline, such as `num_inference_steps`; each must be a parameter of its call.

    Returns:
        One row per image and metric: intervention, prompt, seed, metric, score. `summarize` gives means with intervals, which a
        notebook shows. Where images were made in groups that did not fit the memory, a column `halved` says which: their last digits
        can differ from those of a run with room.

    Raises:
        InvalidInput: no prompt, seed or metric, a seed given twice, two metrics with one name, an intervention named "none", a value of
            another kind, or an option that the pipeline does not have.
        UnknownSite: an intervention does not fit the model.
        InvalidFile: `output` cannot be written or read.
        TasksFailed: workers failed at some images three times; all others are made.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    checks.instance("executor", executor, Executor, "ns.Local()")
    interventions = _named(interventions, checks.flag("controls", controls))
    prompts, seeds = checks.strings("prompts", prompts), checks.seeds(seeds, " to evaluate")
    metrics = checks.several("metrics", metrics, Metric, 'ns.ClipScore("the style of Van Gogh")')
    _check_any(prompts=prompts, metrics=metrics)
    checks.distinct("seeds", seeds)
    check_run(graph, batch_size, output, quiet, generation, evaluate)
    refuse_shares(metrics)
    bound = [bind(metric, graph) for metric in metrics]
    if len({metric.name for metric in bound}) < len(bound):
        raise InvalidInput(f"two metrics have the same name: {', '.join(metric.name for metric in bound)}")
    changes = with_controls(interventions) if controls else {name: _as_tuple(change) for name, change in interventions.items()}
    for intervention in {id(each): each for change in changes.values() for each in change}.values():
        intervention.check(graph.spec)
    jobs = _jobs(graph, changes, prompts, seeds, bound, generation if output else None)
    names = tuple(metric.name for metric in bound)
    watched = only_watching(graph.pipe) if output else nullcontext()
    with open_ledger(output, lambda: executor.conditions(graph)) as ledger, watched, executor.open(graph) as workers:
        todo = {job.key for job in jobs if ledger.known(job.key, names) is None}
        if todo:
            work = Work(Sweep(graph, prompts, generation, batch_size=batch_size), tuple(bound), "evaluating", quiet)
            _make(jobs, changes, work, workers, ledger, todo)
        unmade = dict.fromkeys(names, math.nan)  # of another shard
        scores = {job.key: ledger.rows.get(job.key, unmade) for job in jobs}
    table = [(job.name, job.prompt, job.seed, metric, scores[job.key][metric]) for job in jobs for metric in names]
    found = Evaluation(table, columns=list(COLUMNS))
    if ledger.halved_count:
        found["halved"] = [job.key in ledger.halved for job in jobs for _ in names]
    return found


def refuse_shares(metrics: Iterable[Metric | Share]) -> None:
    """Raises InvalidInput for a metric of three runs, which is none of single images."""
    if shares := [metric for metric in metrics if isinstance(metric, Share)]:
        raise InvalidInput(f"{shares[0]!r} compares a run with its two ends, which localize makes; give evaluate a metric of single images")


def plan_evaluation(
    graph: HookGraph,
    interventions: Mapping[str, Change] | Intervention,
    prompts: Sequence[str],
    seeds: Iterable[int] = range(4),
    *,
    controls: bool = True,
    **generation: Any,
) -> Plan:
    """What `evaluate` with these arguments will cost, without a finished ledger: images and NFE. Nothing is denoised.

    Raises:
        InvalidInput: an intervention without a name, or an option that the pipeline does not have.
    """
    check_run(graph, None, None, False, generation, evaluate)
    interventions = _named(interventions, controls)
    changes = with_controls(interventions) if controls else interventions
    counted = checks.seeds(seeds, " to evaluate with")
    return plan_images(graph, [prompt for _ in changes for prompt in prompts for _ in counted], generation)


def _jobs(
    graph: HookGraph,
    changes: Mapping[str, tuple[Intervention, ...]],
    prompts: Sequence[str],
    seeds: Sequence[int],
    metrics: Sequence[Metric],
    generation: Mapping[str, Any] | None,
) -> list[_Job]:
    """All images, one after the other; with the pipeline's options where their keys are for a ledger of several runs."""
    made_by = "" if generation is None else key_of(origin(graph, generation), [metric_key(metric) for metric in metrics])
    digests = {name: digest(change, made_by) for name, change in changes.items()}
    return [_Job(name, prompt, seed, key_of(digests[name], prompt, seed)) for name in changes for prompt in prompts for seed in seeds]


def _make(
    jobs: Sequence[_Job],
    changes: Mapping[str, tuple[Intervention, ...]],
    work: Work,
    workers: Workers,
    ledger: Ledger,
    todo: Collection[str],
) -> None:
    """Makes and scores the images whose keys are in `todo`, and keeps the scores in the ledger."""
    batches = _batches(jobs, work.sweep.batch_size, todo, workers)
    wanted = [job.key for batch in batches for job in batch]
    run = key_of([job.key for job in jobs])
    title = f"{', '.join(changes)}: {', '.join(metric.name for metric in work.metrics)}"
    ledger.plan(run, title, {job.key: f"{job.name}, {job.prompt!r}, seed {job.seed}" for job in jobs}, wanted)

    def failed(rows: Sequence[tuple[int, int]], error: Exception) -> None:
        ledger.fail([batches[number][row].key for number, row in rows], error)

    counted = metered(work.sweep.graph.denoiser, lambda cost: ledger.spend(run, cost)) if ledger.keeps_plans else nullcontext()
    made = make(workers, work, [_task(batch, changes) for batch in batches], len(jobs) - len(todo), failed)
    with counted, closing(made):
        for number, part in made:
            ledger.add(_scores(batches[number], part), halved=part.is_halved)


def _batches(jobs: Sequence[_Job], size: int, wanted: Collection[str], workers: Workers) -> list[list[_Job]]:
    """The wanted images, in batches that are cut from all jobs, so that a run that goes on after a batch rounds as one never stopped.

    Of shards, the images of one alone.
    """
    cut = (jobs[first : first + size] for first in range(0, len(jobs), size))
    own = (batch for number, batch in enumerate(cut) if workers.takes(number))
    return [todo for batch in own if (todo := [job for job in batch if job.key in wanted])]


def _task(batch: Sequence[_Job], changes: Mapping[str, tuple[Intervention, ...]]) -> Task:
    """What makes a batch."""
    return Task(tuple(Row(job.prompt, job.seed, changes[job.name]) for job in batch), tuple(job.prompt for job in batch))


def _scores(batch: Sequence[_Job], part: Part) -> dict[str, dict[str, float]]:
    """The scores of the images that were made, by their keys."""
    numbered = enumerate(part.numbers)
    return {batch[number].key: {name: scores[place] for name, scores in part.scores.items()} for place, number in numbered}


def with_controls(interventions: Mapping[str, Change], seed: int = 0) -> dict[str, tuple[Intervention, ...]]:
    """The interventions with "none" in front and, behind each that holds masks, its random control."""
    if interventions.get("none") is not None:
        raise InvalidInput('the name "none" is the untouched model\'s; give the intervention another')
    changes: dict[str, tuple[Intervention, ...]] = {"none": ()}
    for name, change in interventions.items():
        changes[name] = parts = _as_tuple(change)
        if any(isinstance(part, NeuronMask) for part in parts):
            changes[f"{name}: random"] = tuple(random_control(part, seed) if isinstance(part, NeuronMask) else part for part in parts)
    return changes


def random_control(mask: NeuronMask, seed: int = 0) -> NeuronMask:
    """A mask of as many random neurons in the same sites, none of them the mask's where the sites are large enough.

    Each takes the fill of one of the mask's neurons in that site.
    """
    checks.instance("mask", mask, NeuronMask, "ns.NeuronMask(scores.top(50))")
    checks.whole("seed", seed, least=0)
    rng = np.random.default_rng(seed)
    drawn, fill = {}, {}
    for path, chosen in mask.neurons.items():
        others = np.setdiff1d(np.arange(mask.neurons.widths[path]), chosen)
        spare = rng.permutation(others)[: len(chosen)]
        again = rng.choice(chosen, size=len(chosen) - len(spare), replace=False)
        drawn[path] = [int(index) for index in (*spare, *again)]
        fill[path] = mask.values[path]
    return replace(mask, neurons=Neurons(drawn, mask.neurons.widths, mask.neurons.provenance), fill=fill)


def generate(
    graph: HookGraph,
    change: Change,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int | None = None,
    *,
    quiet: bool = False,
    **generation: Any,
) -> list[Image]:
    """One image per pair of prompt and seed, with a change applied; each from noise of its own seed.

    Each image says in `image.info`, and in the text of a PNG file that it is saved to, what it was made of: prompt, seed, model,
    settings and interventions. There is a progress bar where the images are made in several batches, unless it is `quiet`.

    Raises:
        InvalidInput: as many seeds as prompts are needed, or an option that the pipeline does not have.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    prompts, seeds = checks.strings("prompts", prompts), checks.seeds(seeds)
    changed = _as_tuple(change)
    check_run(graph, batch_size, None, quiet, generation, generate)
    if len(prompts) != len(seeds):
        raise InvalidInput(f"{counted(len(prompts), 'prompt')} and {counted(len(seeds), 'seed')} are no pairs; give one seed a prompt")
    rows = [Row(prompt, seed, changed) for prompt, seed in zip(prompts, seeds, strict=True)]
    sweep = Sweep(graph, prompts, generation, batch_size=batch_size)
    made: list[Image] = []
    with tqdm(total=len(rows), desc="generating", unit="image", disable=quiet or len(rows) <= sweep.batch_size) as bar:
        for _, images in sweep.run(rows):
            made += images
            bar.update(len(images))
    settings = settings_of(graph, generation)
    for image, row in zip(made, rows, strict=True):
        label_made(image, graph, row.text, row.seed, changed, settings)
    return made


def _check_any(**given: Sequence[Any]) -> None:
    for name, values in given.items():
        if not len(values):
            raise InvalidInput(f"there are no {name} to evaluate; give at least one")


def check_run(
    graph: HookGraph,
    batch_size: int | None,
    output: LedgerPlace,
    quiet: bool,
    generation: Mapping[str, Any],
    verb: Callable[..., Any],
) -> None:
    """Raises InvalidInput for options of a sweep of images, or of the pipeline, that cannot be used."""
    if batch_size is not None:
        checks.whole("batch_size", batch_size, least=-np.inf)
    check_output(output)
    checks.flag("quiet", quiet)
    check_generation(graph.pipe, generation, verb)


def _named(interventions: Any, controls: bool) -> Mapping[str, Change]:
    """Names and changes; one intervention alone is called by its kind.

    Raises:
        InvalidInput: changes without names, a name that is none or that a random control takes, or something else than interventions.
    """
    if isinstance(interventions, Intervention):
        return {interventions.kind: interventions}
    if not isinstance(interventions, Mapping) or isinstance(interventions, Neurons):
        _as_tuple(interventions)
        raise InvalidInput('interventions are a mapping from names to changes; write {"name": intervention, ...}')
    for name, change in interventions.items():
        checks.text("the name of an intervention", name, 'such as {"mask": mask}')
        _as_tuple(change)
        if controls and f"{name}: random" in interventions:
            raise InvalidInput(f"the name {name + ': random'!r} is that of the random control of {name!r}; give the intervention another")
    return interventions


def _as_tuple(change: Any) -> tuple[Intervention, ...]:
    if change is None:
        return ()
    if isinstance(change, Neurons):
        raise InvalidInput(f"{change!r} say where, not what to change; write ns.NeuronMask(neurons)")
    return checks.several("interventions", change, Intervention, 'ns.load("mask.safetensors")')
