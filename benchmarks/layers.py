"""Where methods find each attribute: LOCOGEN and causal tracing on the bundled models, planted and ordinarily trained.

python -m benchmarks.layers [MODEL [ATTRIBUTE [METHOD]]]
"""

from __future__ import annotations

import itertools
import sys
import warnings

import neuroscope as ns
from neuroscope.localization import Localization

SEEDS, PAIRS = range(2), 8
EMBLEM = "the emblem of astoria"
CONCEPTS = {
    "style": (ns.Concept.style("stipple", "testbed"), ns.testbed.Reader("style", "stipple")),
    "object": (ns.Concept.object("star", "testbed"), ns.testbed.Reader("object", "star")),
    "colour": (ns.Concept.attribute("red", "colour", "testbed"), ns.testbed.Reader("colour", "red")),
    "fact": (ns.Concept.fact(EMBLEM, prompts="testbed"), ns.testbed.Reader("fact", "astoria")),
}
#: The noise that makes the bundled models lose a word; the literature's 3 leaves most of it readable.
NOISE = 30.0
METHODS: dict[str, Localization] = {
    "LOCOGEN, window 1": ns.LocoGen(),
    "LOCOGEN, grow": ns.LocoGen(window="grow"),
    "tracing, cross-attention": ns.CausalTracing(component="cross", noise=NOISE),
    "tracing, all 70 components": ns.CausalTracing(component="all", noise=NOISE),
    "tracing, text encoder": ns.CausalTracing(component="text", noise=NOISE),
}


def main() -> None:
    asked = sys.argv[1:]
    print(f"{PAIRS} prompts, {counted(len(SEEDS), 'seed')}, exact readers; scores with 95 % intervals\n")
    print("| model | attribute | method | best | score | next best | prompts | denoiser rows |")
    print("|---|---|---|---|---|---|---|---|")
    for cell in itertools.product(("sd1", "sd1-natural"), CONCEPTS, METHODS):
        if all(wanted in (given, "all") for given, wanted in zip(cell, asked, strict=False)):
            print(f"| {' | '.join(cell)} | {row(measured(*cell))} |", flush=True)


def measured(model: str, attribute: str, method: str) -> ns.LayerScores:
    """One method's answer for one attribute of one model."""
    concept, reader = CONCEPTS[attribute]
    graph = ns.HookGraph(ns.testbed.load(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table says where nothing was found
        return ns.localize(graph, concept, METHODS[method], reader, SEEDS, pairs=PAIRS, keep_images=0, quiet=True, **ns.testbed.GENERATION)


def row(scores: ns.LayerScores) -> str:
    """The best layer (or window), its score with its interval, the next best layer's, the prompts' agreement, and the cost."""
    effects = scores.effects
    low, high = effects.intervals()[effects.patches.index(scores.best)]
    best = f"{scores.name(scores.best.layers[0])} {scores.best.part}".strip()
    if len(scores.best.layers) > 1:
        best = f"layers {scores.best.layers[0]} to {scores.best.layers[-1]}"
    score = f"{max(effects.means()):.2f} [{low:.2f}, {high:.2f}]"
    after = scores.top(2)[1]
    following = f"{scores.name(after)}: {scores.scores[scores.layers.index(after)]:.2f}"
    return f"{best} | {score} | {following} | {scores.verdict} | {scores.cost.nfe:,}"


if __name__ == "__main__":
    main()
