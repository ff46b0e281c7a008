"""How well rankings of neurons find the trained model's planted ones, at what cost, and what their top neurons do together.

python -m benchmarks.neurons            (style: about 25 minutes on one core; or `stipple`, or `style --all-layers`)

"style" asks for the neurons that tell every style from every other, which is what the planted ones carry; "stipple" for those that
tell one style from "plain". Shares of lost styles are read off held-out images in which the first 28 neurons read another style.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch

import neuroscope as ns
from neuroscope.generation.batches import Row, Sweep
from neuroscope.testbed.plant import PLANT
from neuroscope.testbed.world import STYLES

THINGS = ("a red circle", "a green square", "a blue star", "a yellow ring", "a purple triangle", "a cyan cross")
HELD_OUT = ("a red star", "a purple square", "a yellow triangle", "a blue circle", "a cyan ring", "a green cross")
TEMPLATES = ("{} in the style of {}", "a {1} picture of {0}", "a picture of {} in {} style")
HELD_OUT_TEMPLATES = ("{1} style, {0}", "{} drawn in a {} manner")
TOP, FEW = PLANT.neuron_count, PLANT.neuron_count // 4
PAIRS = {"style": 10, "stipple": 4}
RANDOM = 3

Rankings = dict[str, ns.NeuronScores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", choices=PAIRS, default="style")
    parser.add_argument("--all-layers", action="store_true", help="rank the keys and values of all layers, without exact ablation")
    parser.add_argument("--output", type=Path, default=Path("runs/neurons"), help="a folder that keeps exact ablation's images")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    graph = ns.HookGraph(ns.testbed.load("sd1"))
    layer = None if asked.all_layers else PLANT.style
    rankings = dict(recorded(graph, asked.question, layer)) | dict(attributed(graph, asked.question, layer))
    if layer is not None:
        rankings["exact ablation"] = exact(graph, asked.question, layer, asked.output)
    print(as_markdown(table(graph, asked.question, rankings)))
    if layer is not None:
        for said in nulls(graph, layer):
            print(said)


def concept(question: str) -> ns.Concept:
    """Every style against every other, or one style against "plain" alone."""
    if question != "style":
        return ns.Concept.style(question, prompts="testbed", against="plain")
    return ns.Concept("style", *zip(*map(_scene, itertools.permutations(range(len(STYLES)), 2)), strict=True))


def _scene(pair: tuple[int, int]) -> tuple[str, str]:
    """One thing in each of two styles, so that no prompt stands in both arms.

    Things follow the rounds of a tournament, in each of which every style meets one other; templates tell a pair from its reverse.
    """
    first, second = sorted(pair)
    last = len(STYLES) - 1
    meeting = (2 * first if second == last else first + second) % last
    template = TEMPLATES[(meeting + (pair[0] > pair[1])) % len(TEMPLATES)]
    present, absent = (template.format(THINGS[meeting], STYLES[number]) for number in pair)
    return present, absent


def against_others(style: str) -> ns.Concept:
    """One style against each other one, for recordings, which cost no denoising: 30 pairs."""
    pairs = [[TEMPLATES[number % 3].format(thing, each) for each in (style, other)] for number, (thing, other) in _others(style)]
    return ns.Concept(style, *zip(*pairs, strict=True))


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


def table(graph: ns.HookGraph, question: str, rankings: Rankings) -> pd.DataFrame:
    """One row a ranking."""
    reference = rankings.get("exact ablation")
    known = rankings["Welch()"].sites
    (path,) = graph.sites.where(layer=PLANT.style, role="value").paths
    planted = ns.Neurons({path: PLANT.neurons(graph.sites.at([path])[0].width)}, {path: graph.sites.at([path])[0].width})
    lost = Lost(graph, question)
    rows = []
    for name, scores in rankings.items():
        top = scores.top(TOP)
        row: dict[str, Any] = {"ranking": name, "denoiser rows": f"{scores.cost.nfe:,.0f}" if scores.cost else ""}
        if reference is not None:
            row["of exact"] = f"{scores.cost.nfe / reference.cost.nfe:.1%}"
            row["rank correlation with exact"] = correlation(scores, reference)
        row |= {f"planted of its first {TOP}": f"{(top & planted).count / TOP:.2f}"}
        row |= {f"styles lost by its first {count}": f"{lost(scores.top(count)):.2f}" for count in (FEW, TOP)}
        rows.append(row | {"fidelity": str(scores.fidelity or "").removeprefix("rank correlation with exact effects ")})
    rng = np.random.default_rng(0)
    drawn = [lost(_chosen(known, rng.permutation(known.neuron_count)[:TOP])) for _ in range(RANDOM)]
    others = {"planted": lost(planted), "random": np.mean(drawn), "whole layer": lost(_all(graph)), "none": lost(None)}
    rows += [{"ranking": f"({name})", f"styles lost by its first {TOP}": f"{share:.2f}"} for name, share in others.items()]
    return pd.DataFrame(rows).fillna("")


def as_markdown(found: pd.DataFrame) -> str:
    lines = [found.columns, ["---"] * len(found.columns), *found.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


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


def correlation(scores: ns.NeuronScores, reference: ns.NeuronScores) -> str:
    """Spearman's over all neurons, with a bootstrap interval over neurons."""
    both = np.stack([torch.cat([each.strength(path) for path in reference.sites.paths]).numpy() for each in (scores, reference)])
    rng = np.random.default_rng(0)
    drawn = [scipy.stats.spearmanr(*both[:, rng.integers(both.shape[1], size=both.shape[1])]).statistic for _ in range(1000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{scores.agreement(reference):.2f} [{low:.2f}, {high:.2f}]"


def nulls(graph: ns.HookGraph, layer: int) -> Iterator[str]:
    """The excess of rankings of one style's recording over both nulls."""
    for role in ("key", "value"):
        sites = graph.sites.where(layer=layer, role=role)
        recording = ns.record(graph, against_others("stipple"), sites, keep_samples=True, quiet=True)
        for method, null in itertools.product((ns.Welch(), ns.MeanDifference()), ("rotated", "permuted")):
            found = ns.null_test(recording, method, null, top=TOP, heads=graph.heads(sites), quiet=True)
            yield f"{role}s of layer {layer}, {method}: {found}"


def _ranked(graph: ns.HookGraph, question: str, method: ns.CausalAttribution, layer: int | None, **asked: Any) -> ns.NeuronScores:
    options = {"layers": layer, "pairs": PAIRS[question], "batch_size": 32, "quiet": True} | asked
    return ns.rank(graph, concept(question), method, **options, **ns.testbed.GENERATION)


def _described(number: int, styles: Sequence[str], things: Sequence[str] = THINGS, templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """One thing in each of two styles; number by number all things and templates take their turns."""
    template = templates[(number + number // 3) % len(templates)]
    return tuple(template.format(things[number // 3 % len(things)], style) for style in styles)


def _others(style: str) -> Iterator[tuple[int, tuple[str, str]]]:
    return enumerate(itertools.product(THINGS, [other for other in STYLES if other != style]))


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


if __name__ == "__main__":
    main()
