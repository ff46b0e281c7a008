"""`rank`, which scores the neurons of a model by a method: by what they do, or by how they respond."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any

from neuroscope.attribution._attribution import Attribution, score
from neuroscope.attribution._causal_attribution import CausalAttribution
from neuroscope.attribution.neuron_gradient import NeuronGradient
from neuroscope.attribution.recording import BATCH_SIZE, record
from neuroscope.core import checks
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.quality import Plan
from neuroscope.core.results.scores import NeuronScores
from neuroscope.generation.arguments import check_generation, choose_layers
from neuroscope.generation.executors import Executor, Local
from neuroscope.generation.experiment import PAIRS, Experiment, Localization, open_experiment, planned, run_method
from neuroscope.generation.ledgers import LedgerPlace
from neuroscope.metrics.metric import Metric
from neuroscope.metrics.shares import LatentShare, Share
from neuroscope.pipeline.families import TEXT_OPTIONS
from neuroscope.pipeline.graph import HookGraph


class Default(IntEnum):
    """Defaults that can be told from the same numbers given."""

    PAIRS = PAIRS


def rank(
    graph: HookGraph,
    concept: Concept,
    method: CausalAttribution | Attribution = NeuronGradient(),
    *,
    layers: Iterable[int] | int | None = None,
    metric: Metric | Share | None = None,
    seeds: Iterable[int] | None = None,
    pairs: int | None = Default.PAIRS,
    batch_size: int | None = None,
    output: LedgerPlace = None,
    quiet: bool = False,
    executor: Executor = Local(),
    **generation: Any,
) -> NeuronScores:
    """Scores each key and value neuron by how much it controls a concept.

    A causal method (`NeuronGradient`, `IntegratedGradients`, `NeuronAblation`)
    changes the running model. A response method (`Welch`, `MeanDifference`, `Auroc`,
    `WeightedNorm`) records activations of all pairs at the last token, makes no image, and cannot see what the model does with an
    activation; it is `score(record(...), method)` in one call.

    Args:
        graph: the model.
        concept: pairs of prompts with the concept and without it. Only neurons on which the two differ are found.
        method: `NeuronGradient()` by default.
        layers: score the neurons of these layers; None for all.
        metric: what a causal method measures in images; `LatentShare()` by default, and nothing else for `NeuronGradient`.
        seeds: seeds of the initial noise, the same for every prompt; `(0,)` by default.
        pairs: how many of the concept's pairs a causal method uses, evenly spaced; all where there are fewer, or for None. By default 8,
            and all for `NeuronGradient`, whose cost hardly depends on them. A response method uses all.
        batch_size: prompts or images at a time; by default 16 prompts, or as many images as fit half of the free memory, at most 64.
        output: a folder or URL, the ledger that keeps each finished image's score. Give the same again to continue a stopped run. A name
            that ends in .jsonl is one file.
        quiet: show no progress bar.
        executor: where images are made: `Local()`, or `Ray()` for many GPUs and machines. Only methods that make images take one:
            gradients and other single predictions are taken in this process, as their rounding depends on which samples share a call.
        **generation: passed to the pipeline, such as `num_inference_steps`; a response method follows `clip_skip` and
            `clean_caption`, and refuses others.

    Returns:
        The scores, higher for more control, with their cost; `.top(k)` are the neurons to mask.

    Raises:
        InvalidInput: a method of `localize`, no pair or seed, a layer that the model lacks, a value of another kind, an option that the
            pipeline does not have, a method's option that does not fit the model, or an argument that the method would ignore.
        InvalidFile: `output` cannot be written.
        NonFiniteActivation: an activation, a prediction or a gradient is NaN or infinite.
        TasksFailed: workers failed at some images three times; all others are made.
    """
    _check_method(method)
    if isinstance(method, Attribution):
        of_images = {"metric": metric, "seeds": seeds, "output": output, "pairs": None if pairs is Default.PAIRS else pairs}
        ignored = [name for name, value in of_images.items() if value is not None]
        _refuse_unused(method, ignored + ["executor"] * (executor != Local()))
        return _by_response(graph, concept, method, layers, batch_size, quiet, generation)
    check_executor(method, executor)
    options = {"layers": layers, "batch_size": batch_size, "output": output, "quiet": quiet, "executor": executor}
    with _experiment(graph, concept, method, metric, seeds, pairs, generation, **options) as experiment:
        return run_method(experiment, method)


def plan_ranking(
    graph: HookGraph,
    concept: Concept,
    method: CausalAttribution | Attribution = NeuronGradient(),
    *,
    layers: Iterable[int] | int | None = None,
    metric: Metric | Share | None = None,
    seeds: Iterable[int] | None = None,
    pairs: int | None = Default.PAIRS,
    batch_size: int | None = None,
    **generation: Any,
) -> Plan | None:
    """What `rank` with these arguments will cost, without a finished ledger: images and NFE. Nothing is denoised.

    Returns:
        None where the method cannot know before it runs.

    Raises:
        InvalidInput: as in `rank`.
    """
    _check_method(method)
    if isinstance(method, Attribution):
        return Plan(0, 0)
    options = {"layers": layers, "batch_size": batch_size}
    with _experiment(graph, concept, method, metric, seeds, pairs, generation, **options) as experiment:
        return planned(experiment, method)


def _check_method(method: Any) -> None:
    """Raises InvalidInput for what is no method of `rank`."""
    if isinstance(method, Localization):
        raise InvalidInput(
            f"{method!r} scores layers, and rank scores neurons; write ns.localize(graph, concept, ns.{method!r}, metric, ...)"
        )
    checks.instance("method", method, (CausalAttribution, Attribution), "ns.NeuronGradient()")


def check_executor(method: CausalAttribution, executor: Any) -> None:
    """Raises InvalidInput for what is no executor, and for one that the method would ignore."""
    checks.instance("executor", executor, Executor, "ns.Local()")
    if executor.maker != Local() and not method.makes_images:
        raise InvalidInput(
            f"executor would be ignored: {method!r} takes gradients in this process and makes no image; leave it out, or give a method "
            "that makes images, such as ns.NeuronAblation()"
        )


def _experiment(
    graph: HookGraph, concept: Concept, method: CausalAttribution, metric: Any, seeds: Any, pairs: Any, generation: Any, **options: Any
) -> AbstractContextManager[Experiment]:
    """The experiment of a causal method, with `rank`'s defaults for what was not given."""
    options["pairs"] = method.default_pairs if pairs is Default.PAIRS else pairs
    measured = LatentShare() if metric is None else metric
    return open_experiment(rank, graph, concept, measured, (0,) if seeds is None else seeds, generation, **options)


def _by_response(
    graph: HookGraph,
    concept: Concept,
    method: Attribution,
    layers: Iterable[int] | int | None,
    batch_size: int | None,
    quiet: bool,
    generation: dict[str, Any],
) -> NeuronScores:
    """The scores of a recording of key and value sites that is made here."""
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    check_generation(graph.pipe, generation, rank)
    _refuse_unused(method, [name for name in generation if name not in TEXT_OPTIONS])
    sites = graph.sites.where(layer=choose_layers(graph, layers), role=("key", "value"), text_only=True)
    size = BATCH_SIZE if batch_size is None else batch_size
    return score(record(graph, concept, sites, keep_samples=method.needs_samples, batch_size=size, quiet=quiet, **generation), method)


def _refuse_unused(method: Attribution, names: list[str]) -> None:
    """Raises InvalidInput for arguments that a response method would ignore."""
    if names:
        raise InvalidInput(
            f"{' and '.join(names)} would be ignored: {method!r} scores recorded responses and makes no image; "
            f"leave {'it' if len(names) == 1 else 'them'} out, or give a causal method such as ns.NeuronGradient()"
        )
