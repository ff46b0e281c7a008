"""The page of a run, rendered from the templates in `neuroscope/data/report`."""

from __future__ import annotations

import os
from pathlib import Path

import jinja2

from neuroscope.core import checks
from neuroscope.core.distribution import version
from neuroscope.core.errors import counted
from neuroscope.core.storage import refuse_overwriting_inputs, write_beside
from neuroscope.report.overview import overview
from neuroscope.report.run import Run, read_run
from neuroscope.report.scores import layers, neurons
from neuroscope.report.sections import Section, cost, evaluation, interventions, model, other_images, provenance, setup

#: The page's sections in order.
SECTIONS = (setup, model, layers, neurons, interventions, evaluation, other_images, cost, provenance)


def report(run: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Writes one self-contained HTML page of a folder of results.

    The page starts with a box of the main results: layer, neurons, effect and control with 95 % intervals, images and NFE. The
    sections are setup, model, layers, neurons, interventions, evaluation, other images, cost and provenance. What has no results is
    left out. The page needs no network and no script.

    Args:
        run: the folder, as `neuroscope demo` writes it, or filled with `-o` of other commands: saved results (`*.safetensors`),
            evaluations (`*.csv`) and plots (`*.png`). The page lists files that something else wrote as left out.
        path: the page; by default "report.html" in the folder.

    Returns:
        The path of the page.

    Raises:
        InvalidInput: the folder does not exist, or holds nothing to show.
        InvalidFile: one of the results is damaged, `path` is one of them, or the page cannot be written.
    """
    found = read_run(checks.path("run", run))
    target = found.folder / "report.html" if path is None else checks.path("path", path)
    refuse_overwriting_inputs(target, [found.folder / name for name in (*found.artifacts, *found.tables, *found.images)])
    return write_beside(target, _render(found).encode())


def _render(run: Run) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neuroscope", "data/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(title=_title(run), lead=_lead(run), overview=overview(run), sections=_sections(run))


def _sections(run: Run) -> list[Section]:
    """The sections that have parts."""
    return [section for make in SECTIONS if (section := make(run)).parts]


def _title(run: Run) -> str:
    concepts, models = run.recorded("concept"), run.recorded("model")
    return f"{', '.join(concepts)} in {', '.join(models)}" if concepts and models else f"Results in {run.folder.resolve().name}"


def _lead(run: Run) -> str:
    """The folder, what it holds, and the version that made the page."""
    held = {"result": len(run.artifacts), "evaluation": len(run.tables), "image": len(run.images)}
    counts = ", ".join(counted(count, noun) for noun, count in held.items() if count)
    return f"The folder {run.folder.resolve().name}: {counts}. Page made by neuroscope {version()}."
