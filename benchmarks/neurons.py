"""How well rankings of neurons find those that carry a concept, at what cost, and what their first neurons do together.

python -m benchmarks.neurons            (all parts, over an hour on one core; or some of them by name)

"style" asks the trained model for the neurons that tell every style from every other, which is what the planted ones carry; "stipple" for
those that tell one style from "plain". "exact" compares rankings of the first question with exact ablation; shares of lost styles are read
off held-out images in which the first 28 neurons read another style. "constructed" has plants of every family, "q-values" counts what is
wrong among the sure neurons, "natural" has a model without a plant.
Finished rows are kept in benchmarks/results/neurons.json. `python -m benchmarks.tables` writes the docs' tables.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

import neuroscope as ns
from benchmarks.constructed_neurons import count_sure, rank_constructed, trained_truth
from benchmarks.kept import FOLDER, Kept
from benchmarks.kept import Row as Result
from benchmarks.natural_neurons import rank_natural
from benchmarks.neuron_truth import judged
from benchmarks.style_pairs import TEMPLATES, THINGS, against_others, concept
from neuroscope.generation.batches import Row, Sweep
from neuroscope.testbed.plant import PLANT
from neuroscope.testbed.world import STYLES

HELD_OUT = ("a red star", "a purple square", "a yellow triangle", "a blue circle", "a cyan ring", "a green cross")
HELD_OUT_TEMPLATES = ("{1} style, {0}", "{} drawn in a {} manner")
TOP, FEW = PLANT.neuron_count, PLANT.neuron_count // 4
PAIRS = {"style": 10, "stipple": 4}
RANDOM = 3

Rankings = dict[str, ns.NeuronScores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; by default all")
    parser.add_argument("--output", type=Path, default=Path("runs/neurons"), help="a folder that keeps exact ablation's images")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"{min(unknown)} is no part; choose some of {', '.join(PARTS)}")
    asked.output.mkdir(parents=True, exist_ok=True)
    kept = Kept(FOLDER / "neurons.json")
    for part in asked.parts or PARTS:
        PARTS[part](kept, asked.output)


def rank_trained(question: str, kept: Kept) -> None:
    """Every ranking of the trained model's neurons, at the planted layer and over all layers."""
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    for layer in (PLANT.style, None):
        place = {"question": question, "layers": "all" if layer is None else str(layer)}
        if not kept.holds("trained", **place):
            rankings = dict(recorded(graph, question, layer)) | dict(attributed(graph, question, layer))
            kept.add("trained", *(place | row for row in judged_rankings(graph, rankings)))


def rank_exactly(kept: Kept, folder: Path) -> None:
    """The planted layer's neurons by exact ablation, and how other rankings agree with it; both nulls of rankings by response."""
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    if not kept["exact"]:
        reference = exact(graph, "style", PLANT.style, folder)
        rankings = dict(recorded(graph, "style", PLANT.style)) | dict(attributed(graph, "style", PLANT.style))
        rows = judged_rankings(graph, rankings | {"exact ablation": reference}, Lost(graph, "style"))
        agreement = {name: correlation(scores, reference) for name, scores in rankings.items()}
        kept.add("exact", *(row | agreement.get(row["ranking"], {}) for row in rows))
    if not kept["nulls"]:
        kept.add("nulls", *nulls(graph, PLANT.style))


def recorded(graph: ns.HookGraph, question: str, layer: int | None) -> Iterator[tuple[str, ns.NeuronScores]]:
    """Rankings from recordings; of all styles, the mean strength over each style against the others."""
    sites = graph.sites.where(layer=layer, role=("key", "value"))
    concepts = list(map(against_others, STYLES)) if question == "style" else [concept(question)]
    recordings = [ns.record(graph, each, sites, keep_samples=True, quiet=True) for each in concepts]
    for method in (ns.Welch(), ns.MeanDifference(), ns.MeanDifference(weighted=True), ns.WeightedNorm()):
        scores = [ns.score(each, method) for each in recordings]
        means = {path: torch.stack([each.strength(path) for each in scores]).mean(dim=0) for path in sites.paths}
        yield repr(method), ns.NeuronScores(sites, means, two_sided=False, cost=ns.Cost())


def attributed(graph: ns.HookGraph, question: str, layer: int | None) -> Iterator[tuple[str, ns.NeuronScores]]:
    """Rankings by gradients."""
    yield "NeuronGradient", _ranked(graph, question, ns.NeuronGradient(), layer, pairs=None)
    for kind in ("gradient", "integrated"):
        yield f"IntegratedGradients({kind})", _ranked(graph, question, ns.IntegratedGradients(kind=kind), layer)


def exact(graph: ns.HookGraph, question: str, layer: int, folder: Path) -> ns.NeuronScores:
    """Exact ablation, saved."""
    path = folder / f"{question}-exact.safetensors"
    if not path.exists():
        ns.save(_ranked(graph, question, ns.NeuronAblation(), layer, output=folder / f"{question}.jsonl"), path)
    return ns.load(path, ns.NeuronScores)


def judged_rankings(graph: ns.HookGraph, rankings: Rankings, lost: Lost | None = None) -> Iterator[Result]:
    """One row a ranking, and, where images are to be made, one for each set of neurons that they are compared with."""
    truth = trained_truth(graph)
    for name, scores in rankings.items():
        row: Result = {"ranking": name, "nfe": scores.cost.nfe if scores.cost else 0} | judged(scores, truth, truth)
        yield row | ({f"lost_by_{count}": lost(scores.top(count)) for count in (FEW, TOP)} if lost else {})
    if lost:
        sites, rng = rankings["Welch()"].sites, np.random.default_rng(0)
        drawn = [lost(_chosen(sites, rng.permutation(sites.neuron_count)[:TOP])) for _ in range(RANDOM)]
        planted = ns.Neurons.at(graph.sites.at(truth), truth)
        others = {"planted": lost(planted), "random": float(np.mean(drawn)), "whole layer": lost(_all(graph)), "none": lost(None)}
        yield from ({"ranking": f"({name})", f"lost_by_{TOP}": share} for name, share in others.items())


class Lost:
    """The share of held-out images that lose their style when neurons read another prompt, by the exact reader."""

    def __init__(self, graph: ns.HookGraph, question: str) -> None:
        styles = itertools.permutations(STYLES, 2) if question == "style" else [(question, "plain")] * 24
        held_out = [_described(number, each, HELD_OUT, HELD_OUT_TEMPLATES) for number, each in enumerate(styles)]
        self._pairs = [(*pair, seed) for seed, pair in enumerate(held_out, start=100)]
        texts = [text for present, absent, _ in self._pairs for text in (present, absent)]
        self._sweep = Sweep(graph, texts, ns.testbed.GENERATION, batch_size=32)

    def __call__(self, neurons: ns.Neurons | None) -> float:
        rows = []
        for present, absent, seed in self._pairs:
            swap = ns.ContextSwap(tuple(neurons), self._sweep.conditions(absent).context, neurons) if neurons else None
            rows.append(Row(present, seed, (swap,) if swap else ()))
        images = [image for _, batch in self._sweep.run(rows) for image in batch]
        return 1 - float(ns.testbed.Reader("style")(images, [present for present, _, _ in self._pairs]).mean())


def correlation(scores: ns.NeuronScores, reference: ns.NeuronScores) -> Result:
    """Spearman's over all neurons, with a bootstrap interval over neurons."""
    both = np.stack([torch.cat([each.strength(path) for path in reference.sites.paths]).numpy() for each in (scores, reference)])
    rng = np.random.default_rng(0)
    drawn = [scipy.stats.spearmanr(*both[:, rng.integers(both.shape[1], size=both.shape[1])]).statistic for _ in range(1000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"rank_correlation": scores.agreement(reference), "low": float(low), "high": float(high)}


def nulls(graph: ns.HookGraph, layer: int) -> Iterator[Result]:
    """The excess of rankings of one style's recording over both nulls."""
    for role in ("key", "value"):
        sites = graph.sites.where(layer=layer, role=role)
        recording = ns.record(graph, against_others("stipple"), sites, keep_samples=True, quiet=True)
        for method, null in itertools.product((ns.Welch(), ns.MeanDifference()), ("rotated", "permuted")):
            found = ns.null_test(recording, method, null, top=TOP, heads=graph.heads(sites), quiet=True)
            yield {"role": role, "ranking": repr(method), "null": null, "said": str(found)}


def _ranked(graph: ns.HookGraph, question: str, method: ns.CausalAttribution, layer: int | None, **asked: Any) -> ns.NeuronScores:
    options = {"layers": layer, "pairs": PAIRS[question], "batch_size": 32, "quiet": True} | asked
    return ns.rank(graph, concept(question), method, **options, **ns.testbed.GENERATION)


def _described(number: int, styles: Sequence[str], things: Sequence[str] = THINGS, templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """One thing in each of two styles; number by number all things and templates take their turns."""
    template = templates[(number + number // 3) % len(templates)]
    return tuple(template.format(things[number // 3 % len(things)], style) for style in styles)


def _chosen(sites: ns.Sites, numbers: Sequence[int]) -> ns.Neurons:
    """Neurons by their numbers among all of the sites."""
    flags = torch.zeros(sites.neuron_count, dtype=torch.bool)
    flags[numbers] = True
    parts = flags.split([site.width for site in sites])
    chosen = {site.path: part.nonzero().flatten().tolist() for site, part in zip(sites, parts, strict=True)}
    return ns.Neurons(chosen, {site.path: site.width for site in sites})


def _all(graph: ns.HookGraph) -> ns.Neurons:
    sites = graph.sites.where(layer=PLANT.style, role=("key", "value"))
    return _chosen(sites, range(sites.neuron_count))


PARTS: dict[str, Callable[[Kept, Path], None]] = {
    "constructed": lambda kept, _: rank_constructed(kept),
    "q-values": lambda kept, _: count_sure(kept),
    "natural": rank_natural,
    "style": lambda kept, _: rank_trained("style", kept),
    "stipple": lambda kept, _: rank_trained("stipple", kept),
    "exact": rank_exactly,
}

if __name__ == "__main__":
    main()
