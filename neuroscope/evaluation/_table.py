"""An evaluation's table: one row an image and metric, means with intervals, and what a notebook shows of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.results.quality import HALVED
from neuroscope.core.sharing.summary import Shown, Summary
from neuroscope.core.statistics import is_share, mean_interval

COLUMNS = ("intervention", "prompt", "seed", "metric", "score")


class Evaluation(Shown, pd.DataFrame):
    """The table of `ns.evaluate`, of which a notebook shows the means with their intervals. What is cut from it is a plain table."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def summary(self) -> Summary:
        """See `Shown`: the verdict on the first metric, the means, and each prompt's mean of the first metric."""
        means = summarize(self)
        metric = str(self["metric"].iloc[0])
        first = means[means["metric"] == metric]
        said = ", ".join(f"{row.intervention} {_interval(row)}" for row in first.itertuples()) + said_of_halved(self)
        cells = self[self["metric"] == metric].pivot_table(index="intervention", columns="prompt", values="score", sort=False)
        heat = {str(name): row.tolist() for name, row in cells.iterrows()}
        return Summary.of(f"{metric}: {said}", means, heat, f"{metric}; one column a prompt")


def halved_images(table: pd.DataFrame) -> int:
    """How many images of an evaluation were made in groups that did not fit the memory."""
    return int(table["halved"].sum()) // table["metric"].nunique() if "halved" in table else 0


def said_of_halved(table: pd.DataFrame) -> str:
    """That number, as the end of a sentence; nothing where there are none."""
    count = halved_images(table)
    return f"; {counted(count, 'image')} {HALVED}" if count else ""


def summarize(table: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Means of an evaluation with intervals over prompts (images of one prompt are not independent).

    A metric whose scores in the table are all 0 or 1 gives shares of images, and their intervals are exact (Clopper and Pearson): 0 of
    16 prompts leaves room for 0.21. Their number is that of the prompts, whatever the number of seeds. Other metrics have
    bootstrap intervals, and none (NaN) where there is one prompt, or all prompts have the same mean.

    Returns:
        One row per intervention and metric, in the table's order: intervention, metric, mean, low, high, images.
    """
    _check_table(table)
    confidence = checks.finite("confidence", confidence, above=0, most=1 - 1e-9)
    checks.whole("seed", seed, least=0)
    rows = []
    shares = {str(metric): is_share(scores.to_numpy(dtype=float)) for metric, scores in table.groupby("metric", sort=False)["score"]}
    for (name, metric), group in table.groupby(["intervention", "metric"], sort=False):
        by_prompt = group.groupby("prompt", sort=False)["score"].mean().dropna().to_numpy()
        low, high = mean_interval(by_prompt, shares[str(metric)], confidence, seed)
        mean = float(by_prompt.mean()) if len(by_prompt) else np.nan
        rows.append((name, metric, mean, low, high, int(group["score"].count())))
    return pd.DataFrame(rows, columns=["intervention", "metric", "mean", "low", "high", "images"])


def _check_table(table: Any) -> None:
    checks.instance("table", table, pd.DataFrame, "what ns.evaluate gives")
    if missing := [name for name in COLUMNS if name != "seed" and name not in table.columns]:
        raise InvalidInput(f"the table lacks the columns {', '.join(missing)}; give what ns.evaluate gives")


def _interval(row: Any) -> str:
    return f"{row.mean:.2f}" + ("" if np.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]")
