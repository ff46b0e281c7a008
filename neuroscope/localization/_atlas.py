"""`atlas`, which applies one method to several concepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from neuroscope.attribution import Attribution, CausalAttribution, plan_ranking, rank
from neuroscope.attribution._rank import Default, check_executor
from neuroscope.attribution.neuron_gradient import NeuronGradient
from neuroscope.core import checks
from neuroscope.core.atlas import Atlas
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.scores import NeuronScores
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
    checks.instance("method", method, (CausalAttribution, Attribution, Localization), "ns.NeuronGradient()")
    checks.instance("executor", executor, Executor, "ns.Local()")
    chosen = {"metric": metric, "seeds": None if seeds is None else checks.seeds(seeds)}
    chosen["layers"] = None if layers is None else checks.layers("layers", layers)
    options = generation | {"batch_size": batch_size} | {name: value for name, value in chosen.items() if value is not None}
    options |= {"pairs": pairs} if pairs is not Default.PAIRS else {}
    if isinstance(method, Localization):
        return _made(given, _of_layers(graph, given, method, options), graph, output, quiet, executor)
    if isinstance(method, CausalAttribution):
        check_executor(method, executor)
        for concept in given[1:]:  # the first is checked by its own run
            plan_ranking(graph, concept, method, **options)
    return _made(given, partial(rank, graph, method=method, **options), graph, output, quiet, executor)


def _of_layers(graph: HookGraph, concepts: Sequence[Concept], method: Localization, options: dict[str, Any]) -> Callable[..., LayerScores]:
    """`localize` with these options, which are checked for every concept."""
    if "layers" in options:
        raise InvalidInput(f"layers would be ignored: {method!r} scores all layers; leave it out, or give a method of rank")
    options = {"metric": LatentShare()} | options
    for concept in concepts[1:]:  # the first is checked by its own run
        plan_localization(graph, concept, method, **options)
    return partial(localize, graph, method=method, keep_images=0, **options)


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
        return Atlas({concept.name: verb(concept=concept, quiet=quiet, **kept, **where) for concept in concepts})


def _distinct(concepts: Iterable[Concept]) -> tuple[Concept, ...]:
    """Raises InvalidInput for what is no list of concepts of different names."""
    given = checks.several("concepts", concepts, Concept, 'ns.Concept.style("Van Gogh")')
    if not given:
        raise InvalidInput('there are no concepts; give at least one, such as ns.Concept.style("Van Gogh")')
    names = [concept.name for concept in given]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InvalidInput(f"{twice[0]!r} is the name of {counted(names.count(twice[0]), 'concept')}; give each a name of its own")
    return given
