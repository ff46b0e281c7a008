"""The box at the top of a page: what was found, how sure that is, and what it cost."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd

from neuroscope.core.errors import counted
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.scores import Neurons, NeuronScores
from neuroscope.evaluation._table import summarize
from neuroscope.interventions import NeuronMask
from neuroscope.report.run import Run
from neuroscope.report.sections import Fact, costs, facts, method_name
from neuroscope.report.tables import number

#: What ends the name of a mask's control, as `ns.evaluate` adds it, and the name of the untouched model.
_CONTROL, _UNTOUCHED = ": random", "none"
#: A set of neurons in more sites than this gives their number instead of their names.
_FEW = 3


def overview(run: Run) -> list[Fact]:
    """The run in a few facts: layer, neurons, effect and control with 95 % intervals, images, and NFE; each only if it is known.

    Effect and control are the means of each evaluation's first metric, with the intervals of its table.
    """
    spent = costs(run)
    named = {
        "layer": [_layer(scores) for scores in run.of_kind(LayerScores).values()],
        "neurons": _neurons(run),
        **_effects(run.tables),
        "images": [_images(table) for table in run.tables.values()],
        "cost": [f"{reduce(add, spent.values()).nfe:,.0f} NFE"] if spent else [],
    }
    return facts(named)


def _layer(scores: LayerScores) -> str:
    """The best layer, with its share of the total effect if effects were measured, and the method."""
    method = method_name(scores.provenance.method)
    if scores.effects is None:
        return f"{scores.name(scores.top(1)[0])} by {method}"
    best = scores.best
    name = " and ".join(map(scores.name, best.layers)) or str(best)
    share, low, high = scores.effects.share_of(best)
    middle, least, most = (f"{number(100 * each, 0)} %" for each in (share, low, high))
    return f"{name}: {middle} [{least}, {most}] of the total effect by {method}"


def _neurons(run: Run) -> list[str]:
    """How many neurons of which sites the masks and sets hold; without any, how many were ranked."""
    known = run.sites()
    masks = {name: mask.neurons for name, mask in run.of_kind(NeuronMask).items()} | run.of_kind(Neurons)
    if not masks:
        return [
            f"{counted(scores.sites.neuron_count, 'neuron')} ranked by {method_name(scores.provenance.method)}"
            for scores in run.of_kind(NeuronScores).values()
        ]
    return [
        _chosen(name.removesuffix(".safetensors"), each, [known[path].label for path in each if path in known])
        for name, each in masks.items()
    ]


def _chosen(name: str, chosen: Neurons, labels: list[str]) -> str:
    """The size of a set of neurons and its sites, by their labels if these are few and known."""
    where = " and ".join(labels) if 0 < len(labels) <= _FEW and len(labels) == len(chosen) else counted(len(chosen), "site")
    return f"{chosen.count:,} of {counted(sum(chosen.widths.values()), 'neuron')} in {where} ({name})"


def _effects(tables: dict[str, pd.DataFrame]) -> dict[str, list[str]]:
    """By fact, the means of each evaluation's first metric: with the changes, and with their controls and without a change."""
    named: dict[str, list[str]] = {}
    for table in tables.values():
        metric = str(table["metric"].iloc[0])
        for row in summarize(table[table["metric"] == metric]).to_dict("records"):
            control = row["intervention"] == _UNTOUCHED or row["intervention"].endswith(_CONTROL)
            called = "no change" if row["intervention"] == _UNTOUCHED else row["intervention"]
            named.setdefault(f"control: {metric}" if control else f"effect: {metric}", []).append(f"{called} {_mean(row)}")
    return dict(sorted(named.items(), key=lambda each: each[0].startswith("control")))


def _mean(row: Mapping[Hashable, Any]) -> str:
    """A mean with its interval, if it has one."""
    interval = "" if np.isnan(row["low"]) else f" [{number(row['low'], 2)}, {number(row['high'], 2)}]"
    return f"{number(row['mean'], 2)}{interval}"


def _images(table: pd.DataFrame) -> str:
    """How many images an evaluation made, of how many prompts and seeds."""
    made = len(table.drop_duplicates(["intervention", "prompt", "seed"]))
    return f"{counted(made, 'image')} of {counted(table['prompt'].nunique(), 'prompt')} and {counted(table['seed'].nunique(), 'seed')}"
