"""The page of a run, rendered from a template."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import jinja2

from neuroscope.artifacts import write_beside
from neuroscope.reporting.run import read_run
from neuroscope.reporting.sections import sections_of, title_of


def report(run: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Writes one self-contained HTML page of a folder of results.

    What is there is shown in the order of the story: what was asked, the layers, the neurons, what was changed, whether it
    holds, the cost, and where each file comes from.

    Args:
        run: the folder, as `neuroscope demo` writes it, or filled with `-o` of other commands.
        path: the page; by default "report.html" in the folder.

    Raises:
        InvalidFile: no such folder, nothing in it to show, or a page that cannot be written.
    """
    found = read_run(Path(run))
    template = (resources.files("neuroscope") / "data" / "report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    title, lead = title_of(found)
    page = environment.from_string(template).render(title=title, lead=lead, sections=sections_of(found))
    return write_beside(Path(path) if path else found.folder / "report.html", page.encode())
