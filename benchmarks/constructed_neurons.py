"""Rankings of neurons on constructed plants of every family, and how far q-values can be trusted on these and on the trained plant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

import neuroscope as ns
from benchmarks.kept import Kept, Row
from benchmarks.neuron_truth import Truth, calibrated, judged
from benchmarks.style_pairs import concept
from neuroscope.testbed import FAMILIES, Planted, build, planted
from neuroscope.testbed.construction.plants import REWRITING
from neuroscope.testbed.plant import PLANT
from neuroscope.testbed.world import STYLES

#: Those in which keys and values can be recorded without a run; of others see tests/families/test_joint_plants.py.
OF_PROMPTS = [name for name in FAMILIES if name not in REWRITING]
#: Seeds with which nothing was tuned.
SEEDS = (41, 42, 43)
GRADIENTS = (ns.NeuronGradient(), ns.IntegratedGradients(kind="gradient", fidelity=0), ns.IntegratedGradients(fidelity=0))
RESPONSES = (ns.Welch(), ns.MeanDifference(), ns.Auroc(), ns.WeightedNorm())
#: Where ablating each of the neurons alone costs little.
ABLATED = ("sd1", "sd2", "openjourney")
#: More samples than the default, and where they are taken: on the first seed and concept of each kind, over all layers.
SAMPLES, MORE = 32, 128
#: Of the trained plant, by kind: seeds for each concept.
TRAINED_SEEDS = {"every style": range(100, 104), "one style": range(110, 111), "against plain": range(120, 121)}


def rank_constructed(kept: Kept) -> None:
    """Every ranking on every model; rows of finished ones are kept."""
    for family, seed in tqdm(list(itertools.product(OF_PROMPTS, SEEDS))):
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
    """The neurons with small q-values of the default ranking, on the trained plant and on constructed ones."""
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    truth = trained_truth(graph)
    for kind, seeds in TRAINED_SEEDS.items():
        for (name, asked), seed, layers in tqdm(list(itertools.product(_concepts(kind), seeds, (None, PLANT.style))), desc=kind):
            for samples in _samples(seed, seeds, layers) if name in ("style", STYLES[1]) else (SAMPLES,):
                place = {"kind": kind, "concept": name, "seed": seed, "samples": samples, "layers": str(layers or "all")}
                _count(kept, place, graph, asked, truth, layers, ns.testbed.GENERATION)
    for seed, family in tqdm(list(itertools.product(SEEDS, OF_PROMPTS))):
        pipe = build(family, "neurons", seed)
        record, graph = planted(pipe), ns.HookGraph(pipe)
        for samples in _samples(seed, SEEDS, None):
            place = {"kind": "constructed", "concept": family, "seed": seed, "samples": samples, "layers": "all"}
            _count(kept, place, graph, record.concept, record.neurons, None, record.generation)


def _samples(seed: int, seeds: Sequence[int], layers: int | None) -> tuple[int, ...]:
    return (SAMPLES, MORE) if seed == seeds[0] and layers is None else (SAMPLES,)


def _count(
    kept: Kept, place: Row, graph: ns.HookGraph, asked: ns.Concept, truth: Truth, layers: int | None, generation: Mapping[str, Any]
) -> None:
    if not kept.holds("q_values", **place):
        method = ns.NeuronGradient(samples=place["samples"])
        options = {"layers": layers, "seeds": [place["seed"]], "batch_size": 16, "quiet": True}
        kept.add("q_values", place | calibrated(ns.rank(graph, asked, method, **options, **generation), truth, place["samples"]))


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
