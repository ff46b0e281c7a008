"""Rankings of neurons on constructed plants of every family, and how far q-values can be trusted on these and on the trained plant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tqdm.auto import tqdm

import neuroscope as ns
from benchmarks.kept import Kept, Row
from benchmarks.neuron_truth import Truth, calibrated, judged
from benchmarks.style_pairs import concept
from neuroscope.testbed import FAMILIES, Planted, build, planted
from neuroscope.testbed.plant import PLANT
from neuroscope.testbed.world import STYLES

#: Seeds with which nothing was tuned.
SEEDS = (41, 42, 43)
GRADIENTS = (ns.NeuronGradient(), ns.IntegratedGradients(kind="gradient", fidelity=0), ns.IntegratedGradients(fidelity=0))
RESPONSES = (ns.Welch(), ns.MeanDifference(), ns.Auroc(), ns.WeightedNorm())
#: Where ablating each of the neurons alone costs little.
ABLATED = ("sd1", "sd2", "openjourney")
SAMPLES = (32, 128)
#: Of the trained plant, by kind: seeds for each concept.
TRAINED_SEEDS = {"every style": range(100, 108), "one style": range(110, 112), "against plain": range(120, 121)}


def rank_constructed(kept: Kept) -> None:
    """Every ranking on every model; rows of finished ones are kept."""
    for family, seed in tqdm(list(itertools.product(FAMILIES, SEEDS))):
        if kept.holds("constructed", family=family, seed=seed):
            continue
        pipe = build(family, "neurons", seed)
        record, graph = planted(pipe), ns.HookGraph(pipe)
        rows = [row | {"family": family, "seed": seed} for row in _rankings(graph, record)]
        kept.add("constructed", *rows)


def _rankings(graph: ns.HookGraph, record: Planted) -> Iterator[Row]:
    ablation = [ns.NeuronAblation()] if record.family in ABLATED else []
    for method in (*GRADIENTS, *ablation):
        scores = ns.rank(graph, record.concept, method, pairs=None, quiet=True, **record.generation)
        yield {"ranking": repr(method), "nfe": scores.cost.nfe} | judged(scores, record.towards, record.neurons)
    recording = ns.record(graph, record.concept, graph.sites.where(role=("key", "value")), "all", keep_samples=True, quiet=True)
    for method in RESPONSES:
        yield {"ranking": repr(method), "nfe": 0} | judged(ns.score(recording, method), record.towards, record.neurons)


def count_sure(kept: Kept) -> None:
    """q-values of the default ranking, on constructed plants and on the trained one."""
    for family, seed, samples in tqdm(list(itertools.product(FAMILIES, SEEDS, SAMPLES))):
        place = {"kind": "constructed", "concept": family, "seed": seed, "samples": samples, "layers": "all"}
        if not kept.holds("q_values", **place):
            pipe = build(family, "neurons", seed)
            record = planted(pipe)
            found = ns.rank(ns.HookGraph(pipe), record.concept, ns.NeuronGradient(samples=samples), quiet=True, **record.generation)
            kept.add("q_values", place | calibrated(found, record.neurons, samples))
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    truth = trained_truth(graph)
    for kind, samples in tqdm(list(itertools.product(TRAINED_SEEDS, SAMPLES))):
        for (name, asked), seed, layers in itertools.product(_concepts(kind), TRAINED_SEEDS[kind], (None, PLANT.style)):
            place = {"kind": kind, "concept": name, "seed": seed, "samples": samples, "layers": "all" if layers is None else str(layers)}
            if kept.holds("q_values", **place) or (samples > SAMPLES[0] and seed > TRAINED_SEEDS[kind][0]):
                continue
            method = ns.NeuronGradient(samples=samples)
            options = {"layers": layers, "seeds": [seed], "batch_size": 16, "quiet": True}
            found = ns.rank(graph, asked, method, **options, **ns.testbed.GENERATION)
            kept.add("q_values", place | calibrated(found, truth, samples))


def trained_truth(graph: ns.HookGraph) -> Truth:
    """The neurons that the bundled model was trained to have its styles in."""
    (site,) = graph.sites.where(layer=PLANT.style, role="value")
    return {site.path: PLANT.neurons(site.width)}


def _concepts(kind: str) -> Iterator[tuple[str, ns.Concept]]:
    if kind == "every style":
        yield "style", concept("style")
        return
    options = {"against": "plain"} if kind == "against plain" else {}
    for style in STYLES:
        if style != "plain" or not options:
            yield style, ns.Concept.style(style, prompts="testbed", **options)
