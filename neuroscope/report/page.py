"""The page of a run, rendered from a template."""

from __future__ import annotations

import os
from pathlib import Path

import jinja2

from neuroscope.core import checks
from neuroscope.core.distribution import version
from neuroscope.core.storage import refuse_overwriting_inputs, write_beside
from neuroscope.report.changes import changes
from neuroscope.report.holds import holds, others
from neuroscope.report.neurons import neurons
from neuroscope.report.origins import asked, cost, model, provenance
from neuroscope.report.run import Run, read_run
from neuroscope.report.tables import counted
from neuroscope.report.where import where

#: The story, in order.
SECTIONS = (asked, model, where, neurons, changes, holds, others, cost, provenance)


def report(run: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Writes one self-contained HTML page of a folder of results.

    What is there is shown in the order of the story: what was asked, of which model, the layers, the neurons, what was
    changed, whether it holds, the cost, and where each file comes from. The page needs no network and no script.

    Args:
        run: the folder, as `neuroscope demo` writes it, or filled with `-o` of other commands: saved results
            (`*.safetensors`), evaluations (`*.csv`) and plots (`*.png`). Files that something else wrote are listed as left out.
        path: the page; by default "report.html" in the folder.

    Raises:
        InvalidInput: no such folder, or nothing in it to show.
        InvalidFile: one of the results is damaged, or the page cannot be written.
    """
    found = read_run(checks.path("run", run))
    target = found.folder / "report.html" if path is None else checks.path("path", path)
    refuse_overwriting_inputs(target, [found.folder / name for name in (*found.artifacts, *found.tables, *found.images)])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neuroscope", "data/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [section for each in SECTIONS if (section := each(found)).parts]
    page = environment.get_template("page.html").render(title=_title(found), lead=_lead(found), sections=sections)
    return write_beside(target, page.encode())


def _title(run: Run) -> str:
    concepts, models = run.said("concept"), run.said("model")
    return f"{', '.join(concepts)} in {', '.join(models)}" if concepts and models else f"Results in {run.folder.resolve().name}"


def _lead(run: Run) -> str:
    held = {"result": len(run.artifacts), "evaluation": len(run.tables), "image": len(run.images)}
    counts = ", ".join(counted(count, noun) for noun, count in held.items() if count)
    return f"The folder {run.folder.resolve().name}: {counts}. Page made by neuroscope {version()}."
