"""`atlas`, which applies one method to several concepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from neuroscope.attribution import Attribution, CausalAttribution, plan_ranking, rank
from neuroscope.attribution._rank import Default, check_executor
from neuroscope.attribution.neuron_gradient import NeuronGradient
from neuroscope.core import checks
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.results.atlas import Atlas
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Plan
from neuroscope.core.results.scores import NeuronScores
from neuroscope.generation.executors import Executor, Local
from neuroscope.generation.experiment import Localization
from neuroscope.generation.ledgers import LedgerPlace
from neuroscope.localization._localize import localize, plan_localization
from neuroscope.metrics.metric import Metric
from neuroscope.metrics.shares import LatentShare, Share
from neuroscope.pipeline.graph import HookGraph


def atlas(
    graph: HookGraph,
    concepts: Iterable[Concept],
    method: CausalAttribution | Attribution | Localization = NeuronGradient(),
    metric: Metric | Share | None = None,
    *,
    layers: Iterable[int] | int | None = None,
    seeds: Iterable[int] | None = None,
    pairs: int | None = Default.PAIRS,
    batch_size: int | None = None,
    output: LedgerPlace = None,
    quiet: bool = False,
    executor: Executor = Local(),
    **generation: Any,
) -> Atlas:
    """Scores the layers or the neurons of a model for each of several concepts, by one method.

    Args:
        graph: the model.
        concepts: concepts of different names.
        method: of `rank` for neurons, or of `localize` for layers.
        metric: what to measure in images; `LatentShare()` by default. A metric of one concept, such as `ClipScore("the style of Van
            Gogh")`, would measure that one for all.
        layers: with a method of `rank`, score the neurons of these layers; None for all.
        seeds: seeds of the initial noise, the same for every prompt; by default `(0,)` for neurons and `range(4)` for layers.
        pairs: how many of each concept's pairs to use, evenly spaced; all where there are fewer, or for None. By
            default as many as `rank` or `localize` uses.
        batch_size: prompts or images at a time; by default as many as fit.
        output: as in `localize`; one place keeps the scores of all concepts.
        quiet: show no progress bar.
        executor: where images are made; its workers serve all concepts.
        **generation: passed to the pipeline, such as `num_inference_steps`.

    Returns:
        An `Atlas`: by concept what `rank` or `localize` gives, without contact sheets. `.to_frame()` is one table, `.plot()` a heatmap of
        concepts in which those that are alike stand side by side.

    Raises:
        InvalidInput: no concept, two of one name, or what `rank` or `localize` refuses, for any of the concepts; before an image is made.
        InvalidFile: `output` cannot be written.
    """
    given = _distinct(concepts)
    options = _options(method, metric, layers, seeds, pairs, batch_size) | generation
    checks.instance("executor", executor, Executor, "ns.Local()")
    if isinstance(method, CausalAttribution):
        check_executor(method, executor)
    if not isinstance(method, Attribution):
        for concept in given[1:]:  # the first is checked by its own run
            _plan(graph, concept, method, options)
    verb: Callable[..., Any] = partial(localize, keep_images=0) if isinstance(method, Localization) else rank
    return _made(given, partial(verb, graph, method=method, **options), graph, output, quiet, executor)


def plan_atlas(
    graph: HookGraph,
    concepts: Iterable[Concept],
    method: CausalAttribution | Attribution | Localization = NeuronGradient(),
    metric: Metric | Share | None = None,
    *,
    layers: Iterable[int] | int | None = None,
    seeds: Iterable[int] | None = None,
    pairs: int | None = Default.PAIRS,
    batch_size: int | None = None,
    **generation: Any,
) -> Plan | None:
    """What `atlas` with these arguments will cost, without a finished ledger: images and NFE. Nothing is denoised.

    Returns:
        None where the method cannot know before it runs.

    Raises:
        InvalidInput: as in `atlas`.
    """
    options = _options(method, metric, layers, seeds, pairs, batch_size) | generation
    plans = [_plan(graph, concept, method, options) for concept in _distinct(concepts)]
    known = [plan for plan in plans if plan is not None]
    if len(known) < len(plans):
        return None
    return Plan(sum(each.images for each in known), sum(each.nfe for each in known), any(each.is_bound for each in known))


def _options(method: Any, metric: Any, layers: Any, seeds: Any, pairs: Any, batch_size: Any) -> dict[str, Any]:
    """What was given of the options of `rank` or `localize`; raises InvalidInput for one that the method would ignore."""
    checks.instance("method", method, (CausalAttribution, Attribution, Localization), "ns.NeuronGradient()")
    chosen = {"metric": metric, "seeds": None if seeds is None else checks.seeds(seeds)}
    chosen["layers"] = None if layers is None else checks.layers("layers", layers)
    options = {"batch_size": batch_size} | {name: value for name, value in chosen.items() if value is not None}
    options |= {"pairs": pairs} if pairs is not Default.PAIRS else {}
    if not isinstance(method, Localization):
        return options
    if "layers" in options:
        raise InvalidInput(f"layers would be ignored: {method!r} scores all layers; leave it out, or give a method of rank")
    return {"metric": LatentShare()} | options


def _plan(graph: HookGraph, concept: Concept, method: Any, options: dict[str, Any]) -> Plan | None:
    """What one concept will cost."""
    return (plan_localization if isinstance(method, Localization) else plan_ranking)(graph, concept, method, **options)


def _made(
    concepts: Sequence[Concept],
    verb: Callable[..., LayerScores | NeuronScores],
    graph: HookGraph,
    output: LedgerPlace,
    quiet: bool,
    executor: Executor,
) -> Atlas:
    """The scores of all concepts, whose images the same workers make."""
    kept = {} if output is None else {"output": output}
    with executor.open(graph) as workers:
        where = {} if executor == Local() else {"executor": workers}
        found: dict[str, LayerScores | NeuronScores] = {}
        for concept in concepts:
            with workers.one_of_several():
                found[concept.name] = verb(concept=concept, quiet=quiet, **kept, **where)
        workers.finish()
        return Atlas(found)


def _distinct(concepts: Iterable[Concept]) -> tuple[Concept, ...]:
    """Raises InvalidInput for what is no list of concepts of different names."""
    given = checks.several("concepts", concepts, Concept, 'ns.Concept.style("Van Gogh")')
    if not given:
        raise InvalidInput('there are no concepts; give at least one, such as ns.Concept.style("Van Gogh")')
    names = [concept.name for concept in given]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InvalidInput(f"{twice[0]!r} is the name of {counted(names.count(twice[0]), 'concept')}; give each a name of its own")
    return given
