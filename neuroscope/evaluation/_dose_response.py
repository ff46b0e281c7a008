"""The effect of masks of growing size, beside random neurons and all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.quality import Plan
from neuroscope.core.results.scores import NeuronScores
from neuroscope.evaluation._evaluate import Change, check_run, evaluate, plan_evaluation, random_control
from neuroscope.evaluation._image_change import ImageChange, UntouchedImages
from neuroscope.evaluation._response import ALL, NO_CHANGE, RANDOM, TOP, Dose, DoseResponse
from neuroscope.evaluation._table import halved_images
from neuroscope.generation.executors import Executor, Local
from neuroscope.generation.ledgers import LedgerPlace
from neuroscope.interventions import NeuronMask
from neuroscope.metrics.metric import Metric, bind
from neuroscope.pipeline.graph import HookGraph

Fill = float | Mapping[str, Float[Tensor, "neuron"]]


def dose_response(
    graph: HookGraph,
    scores: NeuronScores,
    prompts: Sequence[str],
    *,
    metrics: Sequence[Metric] | Metric,
    fill: Fill = 0.0,
    budgets: Sequence[int] | None = None,
    unrelated: Sequence[str] = (),
    seeds: Iterable[int] = range(4),
    batch_size: int | None = None,
    output: LedgerPlace = None,
    quiet: bool = False,
    executor: Executor = Local(),
    **generation: Any,
) -> DoseResponse:
    """Evaluates masks of the k strongest neurons for growing k: what they do to the concept, and what else they do.

    Each is compared with a mask of k random neurons of the same sites (see `random_control`; above half of a site it has to take some of
    the strongest too), with the untouched model (k = 0) and with a mask of all scored neurons, the most that any k can do. All start
    from the same noise. `DoseResponse.smallest` says how many neurons suffice.

    Args:
        graph: the model.
        scores: the ranking; rank one layer's neurons to compare with the whole layer.
        prompts: prompts with the concept that no neuron was chosen with. Metrics that are 0 or 1 need at least 36, or no interval
            can lie above 0.9.
        metrics: what to measure, see `Metric`. The first is the concept's, whose change is the effect; the others measure side effects.
        fill: what the masks drive neurons to, see `NeuronMask`; by default 0.
        budgets: the numbers of neurons k, in ascending order; by default powers of two below the number of the widest layer's scored
            neurons. 0 and all are added.
        unrelated: prompts without the concept. How much the masks change their images is a side effect too, "image change": the root
            mean square of the difference of pixels, 0 to 1.
        seeds: seeds of the initial noise.
        batch_size: images at a time; by default as many as fit half of the free memory, at most 64.
        output: a folder or URL, the ledger that keeps each finished image's scores; a run that was stopped goes on from it. A name that
            ends in .jsonl is one file.
        quiet: show no progress bar.
        executor: where images are made: `Local()`, or `Ray()` for many GPUs and machines.
        **generation: passed to the pipeline, such as `num_inference_steps`; each must be a parameter of its call.

    Raises:
        InvalidInput: budgets that do not grow or are more than there are neurons, and what `evaluate` refuses.
        UnknownSite: the scores are of another model.
        InvalidFile: `output` cannot be written or read.
        TasksFailed: workers failed at some images three times; all others are made.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    checks.instance("executor", executor, Executor, "ns.Local()")
    check_run(graph, batch_size, output, quiet, generation, dose_response)
    masks = _masks(scores, fill, _budgets(scores, budgets))
    prompts, seeds = checks.strings("prompts", prompts), checks.seeds(seeds, " to evaluate")
    unrelated = checks.strings("unrelated", unrelated)
    checks.distinct("unrelated prompts", unrelated)
    metrics = tuple(bind(each, graph) for each in checks.several("metrics", metrics, Metric, 'ns.ClipScore("the style of Van Gogh")'))
    if taken := [each.name for each in metrics if each.name == ImageChange.name]:
        raise InvalidInput(f"the name {taken[0]!r} is that of the change of unrelated images; give the metric another")
    run: dict[str, Any] = {"controls": False, "batch_size": batch_size, "output": output, "quiet": quiet}
    with executor.open(graph) as workers:
        shared = run | {"executor": workers} | generation
        with workers.one_of_several():
            table = evaluate(graph, {_name(dose): mask for dose, mask in masks.items()}, prompts, seeds, metrics, **shared)
        changes, tables = _changes(graph, masks, unrelated, seeds, shared, generation) if unrelated else (None, [])
    measured = table["score"].to_numpy(dtype=float).reshape(len(masks), len(prompts), len(seeds), len(metrics))
    return DoseResponse(
        doses=tuple(masks),
        metrics=tuple(each.name for each in metrics),
        prompts=prompts,
        seeds=seeds,
        scores=torch.tensor(measured.transpose(3, 0, 1, 2).copy()),
        unrelated_prompts=unrelated,
        changes=changes,
        provenance=replace(scores.provenance, family=graph.family.name, model=graph.model),
        halved=sum(map(halved_images, [table, *tables])),
    )


def plan_dose_response(
    graph: HookGraph,
    scores: NeuronScores,
    prompts: Sequence[str],
    *,
    budgets: Sequence[int] | None = None,
    unrelated: Sequence[str] = (),
    seeds: Iterable[int] = range(4),
    **generation: Any,
) -> Plan:
    """What `dose_response` with these arguments will cost, without a finished ledger: images and NFE. Nothing is denoised.

    Raises:
        InvalidInput: budgets or an option of the pipeline that it refuses.
    """
    check_run(graph, None, None, False, generation, dose_response)
    masks = {_name(dose): mask for dose, mask in _masks(scores, 0.0, _budgets(scores, budgets)).items()}
    counted = checks.seeds(seeds, " to evaluate")
    plans = [plan_evaluation(graph, masks, texts, counted, controls=False, **generation) for texts in (prompts, unrelated)]
    return Plan(sum(each.images for each in plans), sum(each.nfe for each in plans))


def _budgets(scores: Any, budgets: Any) -> tuple[int, ...]:
    """The numbers of neurons between none and all, checked."""
    checks.instance("scores", scores, NeuronScores, "ns.rank(graph, concept, layers=9)")
    every = scores.sites.neuron_count
    if budgets is None:
        layers = {site.layer for site in scores.sites}
        widest = max(sum(site.width for site in scores.sites if site.layer == layer) for layer in layers)
        return tuple(2**power for power in range(widest.bit_length()) if 2**power < widest)
    if isinstance(budgets, str | bytes | Mapping) or not isinstance(budgets, Iterable):
        raise InvalidInput(f"budgets={checks.shown(budgets)} are no numbers of neurons; give whole numbers in ascending order, as [4, 16]")
    given = tuple(checks.whole("one of budgets", each, most=every) for each in budgets)
    if list(given) != sorted(set(given)):
        raise InvalidInput(f"budgets={list(given)} do not grow; give whole numbers in ascending order, each once")
    return tuple(each for each in given if each < every)


def _masks(scores: NeuronScores, fill: Any, budgets: Sequence[int]) -> dict[Dose, Change]:
    """By dose, what is done to the model: first nothing, then the strongest and as many random neurons, and at last all."""
    every = scores.sites.neuron_count
    masks: dict[Dose, Change] = {Dose(0, NO_CHANGE): None}
    for count in budgets:
        mask = NeuronMask(scores.top(count), fill=fill)
        masks |= {Dose(count, TOP): mask, Dose(count, RANDOM): random_control(mask)}
    return masks | {Dose(every, ALL): NeuronMask(scores.top(every), fill=fill)}


def _name(dose: Dose) -> str:
    """What the evaluation calls a dose."""
    return "none" if dose.control == NO_CHANGE else str(dose)


def _changes(
    graph: HookGraph,
    masks: Mapping[Dose, Change],
    prompts: Sequence[str],
    seeds: Sequence[int],
    shared: Mapping[str, Any],
    generation: Mapping[str, Any],
) -> tuple[Float[Tensor, "dose unrelated seed"], list[pd.DataFrame]]:
    """How much each mask changes the images of prompts without the concept, and the tables; no change is 0 and needs no image."""
    masked = {str(dose): mask for dose, mask in masks.items() if mask is not None}
    found, tables = np.zeros((len(masks), len(prompts), len(seeds))), []
    for number, seed in enumerate(seeds):
        metric = UntouchedImages(seed, tuple(prompts), generation, shared["batch_size"]).bound_to(graph)
        with shared["executor"].one_of_several():
            table = evaluate(graph, masked, prompts, [seed], metric, **shared)
        found[1:, :, number] = table["score"].to_numpy(dtype=float).reshape(len(masked), len(prompts))
        tables.append(table)
    return torch.from_numpy(found), tables
