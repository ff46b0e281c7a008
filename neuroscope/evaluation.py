"""Evaluation: interventions × prompts × seeds × metrics, as one tidy table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image
from tqdm.auto import tqdm

from neuroscope._errors import InvalidInput
from neuroscope.graph import HookGraph
from neuroscope.intervals import is_share, mean_interval
from neuroscope.interventions import Intervention, NeuronMask
from neuroscope.ledger import Ledger, digest, key_of, origin
from neuroscope.metrics import Metric, Share, bind
from neuroscope.scores import Neurons
from neuroscope.sweep import Row, Sweep

Change = Intervention | Sequence[Intervention] | None
COLUMNS = ("intervention", "prompt", "seed", "metric", "score")


@dataclass(frozen=True)
class _Job:
    """One image: a named change, a prompt and a seed. The key says all that the image depends on."""

    name: str
    prompt: str
    seed: int
    key: str


def evaluate(
    graph: HookGraph,
    interventions: Mapping[str, Change],
    prompts: Sequence[str],
    seeds: Iterable[int] = range(4),
    metrics: Sequence[Metric] = (),
    *,
    controls: bool = True,
    batch_size: int | None = None,
    output: str | Path | None = None,
    quiet: bool = False,
    **generation: Any,
) -> pd.DataFrame:
    """Makes one image per intervention, prompt and seed, and scores it by every metric.

    An untouched row "none" is added if missing, and for every mask a control "NAME: random": as many random neurons of
    the same sites that the mask leaves alone, filled in the same way. Each image starts from noise of its own seed, so
    neither the batch size nor the other images change it.

    Args:
        graph: the model.
        interventions: names and changes: one intervention, several to be composed, or None for the untouched model.
        prompts: prompts that no neuron was chosen with.
        seeds: seeds of the initial noise.
        metrics: what to measure; see `Metric`.
        controls: whether to add "none" and the random controls.
        batch_size: images at a time; by default as many as fit half of the free memory, at most 64.
        output: a JSON-lines file that keeps each finished image's scores; a run that was stopped goes on from it.
        quiet: show no progress bar.
        **generation: passed to the pipeline, such as `num_inference_steps`.

    Returns:
        One row per image and metric: intervention, prompt, seed, metric, score. `summarize` gives means with intervals.

    Raises:
        InvalidInput: no prompt, seed or metric, two metrics with one name, or an intervention named "none".
        UnknownSite: an intervention does not fit the model.
        InvalidFile: `output` cannot be written or read.
    """
    seeds = list(seeds)
    _check_any(prompts=prompts, seeds=seeds, metrics=metrics)
    if shares := [metric for metric in metrics if isinstance(metric, Share)]:
        raise InvalidInput(
            f"{shares[0]!r} compares a run with its two ends, which localize makes; give evaluate a metric of single pictures"
        )
    bound = [bind(metric, graph) for metric in metrics]
    if len({metric.name for metric in bound}) < len(bound):
        raise InvalidInput(f"two metrics have the same name: {', '.join(metric.name for metric in bound)}")
    changes = with_controls(interventions) if controls else {name: _as_tuple(change) for name, change in interventions.items()}
    for intervention in {id(each): each for change in changes.values() for each in change}.values():
        intervention.check(graph)
    made_by = [*origin(graph, generation, fingerprint=bool(output)), [repr(metric) for metric in bound]]
    digests = {name: digest(change, made_by) for name, change in changes.items()}
    jobs = [_Job(name, prompt, seed, key_of(digests[name], prompt, seed)) for name in changes for prompt in prompts for seed in seeds]
    ledger = Ledger(Path(output) if output else None)
    todo = [job for job in jobs if job.key not in ledger.rows]
    sweep = Sweep(graph, prompts, generation, batch_size=batch_size) if todo else None
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="evaluating", unit="image", disable=quiet) as bar:
        rest = iter(todo)
        for rows, images in sweep.run([Row(job.prompt, job.seed, changes[job.name]) for job in todo]) if sweep else ():
            scores = {metric.name: metric(images, [row.text for row in rows]) for metric in bound}
            batch = itertools.islice(rest, len(rows))
            ledger.add({job.key: {metric: float(each[row]) for metric, each in scores.items()} for row, job in enumerate(batch)})
            bar.update(len(rows))
    table = [(job.name, job.prompt, job.seed, metric, score) for job in jobs for metric, score in ledger.rows[job.key].items()]
    return pd.DataFrame(table, columns=list(COLUMNS))


def summarize(table: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Means of an evaluation with intervals over prompts (images of one prompt are not independent).

    A metric whose scores in the table are all 0 or 1 gives shares of images, and their intervals are exact (Clopper and Pearson): 0 of
    16 prompts leaves room for 0.21. Their number is that of the prompts, whatever the number of seeds. Other metrics have
    bootstrap intervals, and none (NaN) where there is one prompt, or all prompts have the same mean.

    Returns:
        One row per intervention and metric, in the table's order: intervention, metric, mean, low, high, images.
    """
    rows = []
    shares = {str(metric): is_share(scores.to_numpy(dtype=float)) for metric, scores in table.groupby("metric", sort=False)["score"]}
    for (name, metric), group in table.groupby(["intervention", "metric"], sort=False):
        by_prompt = group.groupby("prompt", sort=False)["score"].mean().dropna().to_numpy()
        low, high = mean_interval(by_prompt, shares[str(metric)], confidence, seed)
        mean = float(by_prompt.mean()) if len(by_prompt) else np.nan
        rows.append((name, metric, mean, low, high, int(group["score"].count())))
    return pd.DataFrame(rows, columns=["intervention", "metric", "mean", "low", "high", "images"])


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
    graph: HookGraph, change: Change, prompts: Sequence[str], seeds: Sequence[int], batch_size: int | None = None, **generation: Any
) -> list[Image]:
    """One image per pair of prompt and seed, with a change applied; each from noise of its own seed.

    Raises:
        InvalidInput: as many seeds as prompts are needed.
    """
    if len(prompts) != len(seeds):
        raise InvalidInput(f"{len(prompts)} prompts and {len(seeds)} seeds are no pairs; give one seed a prompt")
    rows = [Row(prompt, seed, _as_tuple(change)) for prompt, seed in zip(prompts, seeds, strict=True)]
    sweep = Sweep(graph, prompts, generation, batch_size=batch_size)
    return [image for _, images in sweep.run(rows) for image in images]


def _check_any(**given: Sequence[Any]) -> None:
    for name, values in given.items():
        if not len(values):
            raise InvalidInput(f"there are no {name} to evaluate; give at least one")


def _as_tuple(change: Change) -> tuple[Intervention, ...]:
    if change is None:
        return ()
    return (change,) if isinstance(change, Intervention) else tuple(change)
