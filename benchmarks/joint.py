"""What a block's swap is credited with where blocks rewrite the text: `definition="edge"` against "stream", and the search against both.

python -m benchmarks.joint      (about five minutes on one core; finished rows are kept in benchmarks/results/joint.json)

`python -m benchmarks.tables` writes the docs' table.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any

from tqdm.auto import tqdm

import neuroscope as ns
from benchmarks.kept import FOLDER, Kept, Row
from neuroscope.testbed.construction.pipelines import build_unplanted, generation_of
from neuroscope.testbed.construction.plants import concept as stated_concept

#: Seeds with which nothing was tuned; of models without a plant, whose prompts are longer, the first ones.
SEEDS, FEW = range(41, 49), range(41, 45)
UNPLANTED = "unplanted"
MODELS = (("sd3", "layer"), ("flux", "layer"), ("sd3", "relayed"), ("sd3", UNPLANTED), ("flux", UNPLANTED))
METHODS: dict[str, ns.LocoGen] = {
    "edge": ns.LocoGen(),
    "edge, shared": ns.LocoGen(trajectory="shared"),
    "stream": ns.LocoGen(definition="stream"),
    "edge, auto": ns.LocoGen(search="auto"),
}


def main() -> None:
    kept = Kept(FOLDER / "joint.json")
    for (family, plant), seed in tqdm(list(itertools.product(MODELS, SEEDS))):
        if (plant != UNPLANTED or seed in FEW) and not kept.holds("credit", family=family, plant=plant, seed=seed):
            kept.add("credit", *credited(family, plant, seed))


def credited(family: str, plant: str, seed: int) -> list[Row]:
    """By method: whether it names the block in which the image reads the concept, and what it credits that block and others with.

    Without a plant the block is the one that "edge" names.
    """
    pipe = build_unplanted(family, seed) if plant == UNPLANTED else ns.testbed.build(family, plant, seed)
    truth = None if plant == UNPLANTED else ns.testbed.planted(pipe)
    graph, rows = ns.HookGraph(pipe), []
    options = generation_of(family)
    edges: list[float] = []
    for name, method in METHODS.items():
        if truth is None and name == "edge, auto":
            continue
        found = localized(graph, method, options)
        credit = [float(each) for each in found.scores]
        edges = edges or credit
        (block,) = truth.layers if truth else [edges.index(max(edges))]
        relay = None if truth is None else truth.relay
        others = [abs(each) for number, each in enumerate(credit) if number not in (block, relay)]
        rows.append(
            {"family": family, "plant": plant, "seed": seed, "method": name, "nfe": round(found.cost.nfe) if found.cost else 0}
            | {"hit": found.top(1) == [block], "block": credit[block], "relay": None if relay is None else credit[relay]}
            | {"others": max(others), "apart": max(abs(each - edge) for each, edge in zip(credit, edges, strict=True))}
        )
    return rows


def localized(graph: ns.HookGraph, method: ns.LocoGen, options: dict[str, Any]) -> ns.LayerScores:
    """A method's scores on the four stated pairs of prompts, with two seeds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table says where nothing was found
        return ns.localize(graph, stated_concept(), method, ns.LatentShare(), range(2), pairs=None, keep_images=0, quiet=True, **options)


if __name__ == "__main__":
    main()
