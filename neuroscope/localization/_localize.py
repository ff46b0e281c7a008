"""`localize`, which applies a localisation method to a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from neuroscope.attribution import Attribution, CausalAttribution
from neuroscope.core import checks
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Plan
from neuroscope.generation.executors import Executor, Local
from neuroscope.generation.experiment import PAIRS, Localization, open_experiment, planned, run_method
from neuroscope.generation.ledgers import LedgerPlace
from neuroscope.metrics.metric import Metric
from neuroscope.metrics.shares import Share
from neuroscope.pipeline.graph import HookGraph


def localize(
    graph: HookGraph,
    concept: Concept,
    method: Localization,
    metric: Metric | Share,
    seeds: Iterable[int] = range(4),
    *,
    pairs: int | None = PAIRS,
    keep_images: int = 4,
    batch_size: int | None = None,
    output: LedgerPlace = None,
    quiet: bool = False,
    executor: Executor = Local(),
    **generation: Any,
) -> LayerScores:
    """Scores each layer by how much it controls a concept in generated images. For neurons, see `rank`.

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
        output: a folder or URL, the ledger that keeps each finished image's score. Give the same again to continue a stopped run. A name
            that ends in .jsonl is one file.
        quiet: show no progress bar.
        executor: where images are made: `Local()`, or `Ray()` for many GPUs and machines. Single predictions, by which screens and
            searches choose layers, are always made in this process: they cost little, and their rounding depends on which images share a
            call.
        **generation: passed to the pipeline, such as `num_inference_steps`.

    Returns:
        `LayerScores` with bootstrap intervals over prompts and seeds, each prompt's own best layer, a contact sheet and the cost.

    Raises:
        InvalidInput: no pair or seed, a method of `rank`, a value of another kind, an option that the pipeline does not have, or
            a method's option that does not fit the model.
        InvalidFile: `output` cannot be written.
        TasksFailed: workers failed at some images three times; all others are made.
    """
    if isinstance(method, CausalAttribution | Attribution):
        raise InvalidInput(f"{method!r} scores neurons, and localize scores layers; write ns.rank(graph, concept, ns.{method!r}, ...)")
    checks.instance("method", method, Localization, "ns.LocoGen()")
    with open_experiment(
        localize,
        graph,
        concept,
        metric,
        seeds,
        generation,
        pairs=pairs,
        keep_images=keep_images,
        batch_size=batch_size,
        output=output,
        quiet=quiet,
        executor=executor,
    ) as experiment:
        return run_method(experiment, method)


def plan_localization(
    graph: HookGraph,
    concept: Concept,
    method: Localization,
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
    checks.instance("method", method, Localization, "ns.LocoGen()")
    with open_experiment(localize, graph, concept, metric, seeds, generation, pairs=pairs, batch_size=batch_size) as experiment:
        return planned(experiment, method)
