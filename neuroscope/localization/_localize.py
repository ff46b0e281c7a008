"""`localize`, which applies a localisation method to a model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuroscope.core import checks
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput
from neuroscope.core.quality import Cost, Plan
from neuroscope.generation.arguments import check_generation
from neuroscope.generation.experiment import Experiment, Found, Localization, Pair
from neuroscope.generation.foreign_hooks import only_watching
from neuroscope.generation.keys import key_of, method_key, metric_key, origin
from neuroscope.generation.ledger import Ledger
from neuroscope.generation.metering import metered
from neuroscope.metrics.metric import Metric, bind
from neuroscope.metrics.shares import Share
from neuroscope.pipeline.graph import HookGraph

#: How many of a concept's pairs `localize` uses by default.
PAIRS = 8


def localize(
    graph: HookGraph,
    concept: Concept,
    method: Localization[Found],
    metric: Metric | Share,
    seeds: Iterable[int] = range(4),
    *,
    pairs: int | None = PAIRS,
    keep_images: int = 4,
    batch_size: int | None = None,
    output: str | Path | None = None,
    quiet: bool = False,
    **generation: Any,
) -> Found:
    """Scores each layer (or, by some methods, each neuron) by how much it controls a concept in generated images.

    Args:
        graph: the model.
        concept: pairs of prompts with the concept and without it (or, for facts, with the new answer).
        method: such as `LocoGen()` or `CausalTracing()`.
        metric: what to measure, such as `ClipScore("the style of Van Gogh")`, or `LatentShare()` and `ImageShare()`, which
            need no scorer. The sign of the total effect decides whether it should fall or rise, so that higher scores always
            mean more control.
        seeds: seeds of the initial noise, the same for every prompt.
        pairs: how many of the concept's pairs to use, evenly spaced; all where there are fewer, or for None.
        keep_images: for how many prompts the first seed's images go to the contact sheet, `LayerScores.images`.
        batch_size: images at a time; by default as many as fit half of the free memory, at most 64.
        output: a JSON-lines file that keeps each finished image's score. Give the same file again to continue a stopped run.
        quiet: show no progress bar.
        **generation: passed to the pipeline, such as `num_inference_steps`.

    Returns:
        `LayerScores` with bootstrap intervals over prompts and seeds, each prompt's own best layer, a contact sheet and the cost; or
        `NeuronScores`, from methods such as `NeuronGradient`.

    Raises:
        InvalidInput: no pair or seed, a value of another kind, an option that the pipeline does not have, or
            a method's option that does not fit the model.
        InvalidFile: `output` cannot be written.
    """
    if output is not None:
        checks.path("output", output)
    options = {"keep_images": keep_images, "batch_size": batch_size, "quiet": quiet}
    experiment = _checked(graph, concept, method, metric, seeds, pairs, generation, **options)
    if not output:
        return method(experiment)
    made_by = key_of(origin(graph, generation), metric_key(experiment.metric))
    with Ledger(Path(output)) as ledger, only_watching(graph.pipe):
        return _with_all_costs(replace(experiment, ledger=ledger, origin=made_by), method)


def plan_localization(
    graph: HookGraph,
    concept: Concept,
    method: Localization[Found],
    metric: Metric | Share,
    seeds: Iterable[int] = range(4),
    *,
    pairs: int | None = PAIRS,
    batch_size: int | None = None,
    **generation: Any,
) -> Plan | None:
    """What `localize` with these arguments will cost, without a finished ledger: images and NFE. Nothing is denoised.

    The metric's own model is loaded, so that one that is missing is found here.

    Returns:
        None where the method cannot know before it runs.

    Raises:
        InvalidInput: as in `localize`.
    """
    return method.plan(_checked(graph, concept, method, metric, seeds, pairs, generation, batch_size=batch_size))


def _checked(
    graph: HookGraph, concept: Concept, method: Any, metric: Any, seeds: Any, pairs: Any, generation: dict[str, Any], **options: Any
) -> Experiment:
    """The experiment of these arguments, without a ledger; raises InvalidInput for what `localize` does not take."""
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    checks.instance("concept", concept, Concept, 'ns.Concept.style("Van Gogh")')
    checks.instance("method", method, Localization, "ns.LocoGen()")
    checks.instance("metric", metric, Metric, "ns.LatentShare()")
    seeds = checks.seeds(seeds, " to localize with")
    options = {"keep_images": 0, "quiet": False} | options
    _check_options(pairs, **options)
    check_generation(graph.pipe, generation, localize)
    if len(set(seeds)) < len(seeds):
        raise InvalidInput(f"the seeds {seeds} are not all different; give each once")
    return Experiment(
        graph=graph,
        name=concept.name,
        pairs=_chosen(concept, pairs),
        metric=metric if isinstance(metric, Share) else bind(metric, graph),
        seeds=seeds,
        generation=generation,
        ledger=Ledger(None),
        origin="",
        **options,
    )


def _with_all_costs(experiment: Experiment, method: Localization[Found]) -> Found:
    """The method's scores, with the cost of all parts of a run that was stopped and continued.

    The denoiser's NFE are stored at each call, so that those of a killed part count. The method's final cost replaces them.
    """
    run = key_of(experiment.origin, experiment.name, method_key(method), [list(pair) for pair in experiment.pairs], list(experiment.seeds))
    with metered(experiment.graph.denoiser, lambda cost: experiment.ledger.spend(run, cost)):
        found = method(experiment)
    before, cost = experiment.ledger.spent(run), found.cost or Cost()
    if not cost.nfe and before.nfe:
        return replace(found, cost=before)
    experiment.ledger.spend(run, cost)
    return replace(found, cost=before + cost)


def _check_options(pairs: Any, keep_images: Any, batch_size: Any, quiet: Any) -> None:
    for name, value in (("pairs", pairs), ("batch_size", batch_size)):
        if value is not None:
            checks.whole(name, value, least=-math.inf)
    checks.whole("keep_images", keep_images, least=0)
    checks.flag("quiet", quiet)


def _chosen(concept: Concept, pairs: int | None) -> tuple[Pair, ...]:
    every = [Pair(present, absent) for present, absent in zip(concept.present, concept.absent, strict=True)]
    if pairs is not None and pairs < 1:
        raise InvalidInput(f"pairs={pairs} leaves nothing to localize with; give 1 or more, or None for all {len(every)}")
    count = len(every) if pairs is None else min(pairs, len(every))
    return tuple(every[number * len(every) // count] for number in range(count))
