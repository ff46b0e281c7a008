"""What the first k neurons of rankings do together on a model in which nothing was planted, beside random ones and exact ablation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

import neuroscope as ns
from benchmarks.kept import Kept, Row
from neuroscope.attribution import plan_ranking
from neuroscope.core.results.quality import Plan
from neuroscope.core.statistics import mean_interval
from neuroscope.generation import batches
from neuroscope.generation.batches import Sweep
from neuroscope.testbed.world import STYLES

STYLE = "stipple"
BUDGETS = (50, 200, 400)
EXACT = ns.NeuronAblation(group=2)
#: Pairs of prompts where each neuron makes an image, and where each pair makes a run.
EXACT_PAIRS, PAIRS = 1, 4
THINGS = ("a red star", "a purple square")
TEMPLATES = ("{1} style, {0}", "{0} drawn in a {1} manner")
DRAWS = 3


def rank_natural(kept: Kept, folder: Path) -> None:
    """Every ranking of all key and value neurons, and the effect of its first k; finished rows and images are kept."""
    graph = ns.HookGraph(ns.testbed.load("sd1-natural"))
    effect = JointEffect(graph)
    exact = _ranked(graph, EXACT, EXACT_PAIRS, output=folder / "natural.jsonl")
    for name, scores in _rankings(graph, exact):
        cost = planned(graph).nfe if scores is exact else scores.cost.nfe if scores.cost else 0
        agreement = {"rank_correlation": scores.agreement(exact), "nfe": cost}
        for count in tqdm(BUDGETS, desc=name):
            if not kept.holds("natural", ranking=name, count=count):
                kept.add("natural", {"ranking": name, "count": count} | agreement | effect(scores.top(count)))
    rng = np.random.default_rng(0)
    for count, draw in itertools.product(BUDGETS, range(DRAWS)):
        chosen = random_neurons(exact.sites, count, rng)
        if not kept.holds("natural", ranking="random", count=count, draw=draw):
            kept.add("natural", {"ranking": "random", "count": count, "draw": draw, "nfe": 0} | effect(chosen))


def concept() -> ns.Concept:
    """The style against several others."""
    return ns.Concept.style(STYLE, prompts="testbed")


def planned(graph: ns.HookGraph) -> Plan:
    """What exact ablation costs, whatever of it is kept already."""
    found = plan_ranking(graph, concept(), EXACT, pairs=EXACT_PAIRS, **ns.testbed.GENERATION)
    return found if found is not None else Plan(0, 0)


class JointEffect:
    """How far held-out images move towards another style's when some neurons read that style's prompt: the share of the whole effect."""

    def __init__(self, graph: ns.HookGraph) -> None:
        others = [each for each in STYLES if each != STYLE]
        texts = [
            [TEMPLATES[(number + place) % len(TEMPLATES)].format(thing, style) for style in (STYLE, other)]
            for number, thing in enumerate(THINGS)
            for place, other in enumerate(others)
        ]
        self._pairs = [(*pair, seed) for seed, pair in enumerate(texts, start=200)]
        every = [text for pair in texts for text in pair]
        self._sweep = Sweep(graph, every, ns.testbed.GENERATION, batch_size=20, space="latent")
        self._source, self._target = (self._run([batches.Row(pair[arm], pair[2]) for pair in self._pairs]) for arm in (0, 1))

    def __call__(self, neurons: ns.Neurons) -> Row:
        swaps = [ns.ContextSwap(tuple(neurons), self._sweep.conditions(absent).context, neurons) for _, absent, _ in self._pairs]
        moved = self._run([batches.Row(pair[0], pair[2], (swap,)) for pair, swap in zip(self._pairs, swaps, strict=True)])
        runs = zip(moved, self._source, self._target, strict=True)
        shares = np.array([ns.LatentShare()(*each) for each in runs])
        low, high = mean_interval(shares, share=False)
        return {"images": len(shares), "effect": float(shares.mean()), "low": low, "high": high}

    def _run(self, rows: list[batches.Row]) -> list[object]:
        return [image for _, batch in self._sweep.run(rows) for image in batch]


def random_neurons(sites: ns.Sites, count: int, rng: np.random.Generator) -> ns.Neurons:
    """Neurons drawn from all of the sites."""
    every = [(site.path, index) for site in sites for index in range(site.width)]
    chosen = [every[number] for number in rng.choice(len(every), count, replace=False)]
    return ns.Neurons.at(sites, {path: [index for where, index in chosen if where == path] for path in sites.paths})


def _rankings(graph: ns.HookGraph, exact: ns.NeuronScores) -> Iterator[tuple[str, ns.NeuronScores]]:
    yield repr(EXACT), exact
    yield repr(ns.NeuronGradient()), _ranked(graph, ns.NeuronGradient(), None)
    yield f"{ns.NeuronGradient()!r}, 1 pair", _ranked(graph, ns.NeuronGradient(), EXACT_PAIRS)
    yield repr(ns.IntegratedGradients(fidelity=0)), _ranked(graph, ns.IntegratedGradients(fidelity=0), PAIRS)
    for method in (ns.Welch(), ns.MeanDifference()):
        yield repr(method), ns.rank(graph, concept(), method, quiet=True)


def _ranked(graph: ns.HookGraph, method: ns.CausalAttribution, pairs: int | None, output: Path | None = None) -> ns.NeuronScores:
    options = {"pairs": pairs, "batch_size": 32, "quiet": True, "output": output}
    return ns.rank(graph, concept(), method, **options, **ns.testbed.GENERATION)
