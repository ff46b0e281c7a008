"""Two ways to find a layer side by side on PixArt-shaped plants: LOCOGEN's search, and the norm of an attention's contribution.

python -m benchmarks.contribution        (goes on where it was stopped; rows are kept in benchmarks/results/contribution.json)

The second is the localiser of Zarei et al. (2025), without its fidelity check, and its variant against the other prompt.
"""

from __future__ import annotations

import itertools

import pandas as pd
from tqdm.auto import tqdm

from benchmarks.kept import FOLDER, Kept
from benchmarks.localization import METHODS, answer, opened
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.localization import Localization
from neuroscope.testbed import planted

COMPARED = ("auto, 1/20 or 1/40", "attention contribution", "attention, against other")
PLANTS, SEEDS = ("layer", "pair", "redundant", "neurons"), range(3)


def main() -> None:
    """Measures what is missing and prints the table."""
    kept = Kept(FOLDER / "contribution.json")
    for plant, seed in tqdm(list(itertools.product(PLANTS, SEEDS))):
        if not kept.holds("pixart", plant=plant, seed=seed, method=COMPARED[-1]):
            kept.add("pixart", *measured(plant, seed))
    print(summary(pd.DataFrame(kept["pixart"])).to_string())


def measured(plant: str, seed: int) -> list[dict[str, object]]:
    """One row a method: the layer that it names, the planted ones, and its NFE beside those of all windows of one layer."""
    pair = opened(f"pixart/{plant}/{seed}")
    layers = planted(pair.graph.pipe).layers
    images = len(pair.seeds) * pair.pairs
    windows = images * pair.generation["num_inference_steps"] * (len(pair.graph.sites.layers) + 2)
    rows: list[dict[str, object]] = []
    for label in COMPARED:
        made, first_seed = METHODS[label]
        method = made if isinstance(made, Localization) else made(pair)
        found = pair.localized(method, range(1) if first_seed else None)
        rows.append(
            {
                "plant": plant,
                "seed": seed,
                "method": label,
                "named": found.top(1)[0],
                "none alone": says_none(found),
                "planted": list(layers),
            }
        )
        rows[-1] |= {"nfe": float(found.cost.nfe), "all windows": windows}
    return rows


def says_none(scores: LayerScores) -> bool:
    """Whether a search says that no layer alone carries the concept; the norms of contributions say no such thing."""
    return scores.confidence is not None and answer(scores) is None


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By plant and method: how often a planted layer is named, how often none is said to suffice alone, and the median NFE."""
    right = [row["named"] in row["planted"] and not row["none alone"] for _, row in table.iterrows()]
    groups = table.assign(right=right).groupby(["plant", "method"], sort=False)
    columns = {"plants": groups.size(), "planted": groups["right"].sum(), "none alone": groups["none alone"].sum()}
    return pd.DataFrame(columns | {name: groups[name].median().round() for name in ("nfe", "all windows")})


if __name__ == "__main__":
    main()
