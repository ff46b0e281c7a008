"""Does it hold: evaluations with intervals, the pictures before and after, and the dose."""

from __future__ import annotations

import pandas as pd

from neuroscope.evaluation._evaluate import summarize
from neuroscope.report.blocks import Fact, Part, Section
from neuroscope.report.drawing import shown
from neuroscope.report.run import Run
from neuroscope.report.tables import counted, tabled

#: Pictures that belong here, by file: a title, what they show, and a caption.
_PICTURES = {
    "images.png": ("Before and after", "Pictures before and after", "A column is one prompt, all from the same noise."),
    "dose.png": ("Dose", "Scores against the number of masked neurons", "Effect and collateral against the number of neurons."),
}
_ELSEWHERE = {"layers.png", "neurons.png"}


def holds(run: Run) -> Section:
    """The run's evaluations and the pictures that belong to them."""
    parts = [_part(name, table) for name, table in run.tables.items()]
    for file, (title, alt, caption) in _PICTURES.items():
        if file in run.pictures:
            parts.append(Part(title, file, figures=[shown(run.pictures[file], alt, caption)]))
    return Section("Does it hold?", parts)


def others(run: Run) -> Section:
    """Pictures that no other section shows."""
    names = [name for name in run.pictures if name not in _ELSEWHERE | _PICTURES.keys()]
    figures = [shown(run.pictures[name], f"The picture {name}", name) for name in names]
    return Section("Other pictures", [Part(figures=figures)] if figures else [])


def _part(name: str, table: pd.DataFrame) -> Part:
    prompts = list(dict.fromkeys(table["prompt"]))
    counts = f"{counted(len(prompts), 'prompt')}, {counted(table['seed'].nunique(), 'seed')}"
    text = f"Means over {counts}, with 95 % intervals over prompts: images of one prompt are not independent. Those of shares are exact."
    summary = tabled(summarize(table), "Scores by metric", by="metric")
    return Part("Evaluation", name, text=text, facts=[Fact("prompts", prompts)], tables=[summary])
