"""`search="auto"` where blocks rewrite the text: which block it names, how sure it is, and for what share of the NFE of all windows.

OMP_NUM_THREADS=1 python -m benchmarks.joint_search --blocks 16 --seeds 12
python -m benchmarks.joint_search --table     (what was measured, of each depth)

Constructed pipelines of Stable Diffusion 3 in which one block carries the concept, 32 images, ten steps, a budget of 1/20. The cost of all
windows is their plan's, which is exact. Fails where an answer of 95 % or more is wrong, or from 16 blocks on the budget is overrun.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import neuroscope as ns
from benchmarks.kept import FOLDER, Kept
from neuroscope.localization import plan_localization
from neuroscope.testbed.construction import pipelines
from neuroscope.testbed.construction.builders.joint import sd3

FILE = FOLDER / "joint_search.json"
STEPS, SEEDS, BUDGET, SURE = 10, range(8), 1 / 20, 0.95
#: From so many blocks on a search has to stay within its budget.
DEEP = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=DEEP)
    parser.add_argument("--seeds", type=int, default=12, help="so many plants, from seed 0 on; those that are kept are not made again")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    kept, place = Kept(FILE), str(asked.blocks) + " blocks"
    for seed in tqdm([] if asked.table else [seed for seed in range(asked.seeds) if not kept.holds(place, seed=seed)]):
        kept.add(place, searched(asked.blocks, seed))
    table = kept_table()
    print(summary(table).to_string())
    check(table)


def kept_table() -> pd.DataFrame:
    """One row a plant, of all depths."""
    return pd.DataFrame([{"blocks": int(name.split()[0])} | row for name, rows in Kept(FILE).sections.items() for row in rows])


def searched(blocks: int, seed: int) -> dict[str, Any]:
    """What one search finds in a plant, and what it takes."""
    pipelines.BUILDERS["sd3"] = partial(sd3, blocks)
    pipe = ns.testbed.build("sd3", "layer", seed)
    plant, graph = ns.testbed.planted(pipe), ns.HookGraph(pipe)
    options = {"metric": ns.LatentShare(), "seeds": SEEDS} | plant.generation | {"num_inference_steps": STEPS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = ns.localize(graph, plant.concept, ns.LocoGen(search="auto", budget=BUDGET), quiet=True, **options)
    windows = plan_localization(graph, plant.concept, ns.LocoGen(), **options).nfe
    sure = found.confidence.probability if found.confidence else 1.0
    return {"seed": seed, "true": plant.layers[0], "said": found.top(1)[0], "sure": sure, "nfe": found.cost.nfe, "windows": windows}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By depth: plants, right answers, those of 95 % and more and how many of them are right; windows over search, mean and least."""
    shown = table.assign(right=table["said"] == table["true"], times=table["windows"] / table["nfe"], sure=table["sure"] >= SURE)
    of_depth = shown.assign(sure_and_right=shown["right"] & shown["sure"]).groupby("blocks")
    counts = of_depth[["right", "sure", "sure_and_right"]].sum()
    return counts.assign(plants=of_depth.size(), mean=of_depth["times"].mean(), least=of_depth["times"].min())


def check(table: pd.DataFrame) -> None:
    """Raises AssertionError for a wrong answer that was given with confidence, or for a search of many blocks above its budget."""
    wrong = table[(table["sure"] >= SURE) & (table["said"] != table["true"])]
    if len(wrong):
        raise AssertionError(f"wrong at {SURE:.0%}:\n{wrong.to_string()}")
    over = table[(table["blocks"] >= DEEP) & (table["nfe"] > BUDGET * table["windows"])]
    if len(over):
        raise AssertionError(f"above the budget:\n{over.to_string()}")


if __name__ == "__main__":
    main()
