"""Does it hold: evaluations with intervals, the images before and after, and the dose."""

from __future__ import annotations

import pandas as pd

from neuroscope.evaluation._evaluate import summarize
from neuroscope.report.blocks import Fact, Part, Section
from neuroscope.report.drawing import shown
from neuroscope.report.run import Run
from neuroscope.report.tables import counted, tabled

#: Images that belong here, by file: a title, what they show, and a caption.
_PICTURES = {
    "images.png": ("Before and after", "Images before and after", "A column is one prompt, all from the same noise."),
    "dose.png": ("Dose", "Scores against the number of masked neurons", "Effect and collateral against the number of neurons."),
}
_ELSEWHERE = {"layers.png", "neurons.png"}


def holds(run: Run) -> Section:
    """The run's evaluations and the images that belong to them."""
    parts = [_part(name, table) for name, table in run.tables.items()]
    for file, (title, alt, caption) in _PICTURES.items():
        if file in run.images:
            parts.append(Part(title, file, figures=[shown(run.images[file], alt, caption)]))
    return Section("Does it hold?", parts)


def others(run: Run) -> Section:
    """Images that no other section shows."""
    names = [name for name in run.images if name not in _ELSEWHERE | _PICTURES.keys()]
    figures = [shown(run.images[name], f"The image {name}", name) for name in names]
    return Section("Other images", [Part(figures=figures)] if figures else [])


def _part(name: str, table: pd.DataFrame) -> Part:
    prompts = list(dict.fromkeys(table["prompt"]))
    counts = f"{counted(len(prompts), 'prompt')}, {counted(table['seed'].nunique(), 'seed')}"
    text = f"Means over {counts}, with 95 % intervals over prompts: images of one prompt are not independent. Those of shares are exact."
    summary = tabled(summarize(table), "Scores by metric", by="metric")
    return Part("Evaluation", name, text=text, facts=[Fact("prompts", prompts)], tables=[summary])
