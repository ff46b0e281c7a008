"""The pages of the API: every public name once, in the group of the room that it comes from, with its example.

The site's build (`make site`) calls `on_files`; nothing of it is kept in the repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import neuroscope as ns

EXAMPLES = Path(__file__).parent / "examples.md"
#: By the room that a name comes from: the page, its title, and what its reader can do with it.
GROUPS: Mapping[str, tuple[str, str, str]] = {
    "core": ("data", "Data", "Name concepts, hold results, save and load them. None of these holds a live model."),
    "pipeline": ("pipeline", "Pipelines", "Open a diffusers pipeline and see what can be hooked in it."),
    "interventions": ("interventions", "Interventions", "Change what a model does while it runs."),
    "metrics": ("metrics", "Metrics", "Score images by how much of a concept is in them."),
    "generation": ("generation", "Generation", "Make many images, and go on where a run was stopped."),
    "attribution": ("neurons", "Ranking neurons", "Find the neurons that respond to a concept."),
    "localization": ("layers", "Finding layers", "Find the layers and neurons that control a concept."),
    "editing": ("editing", "Editing", "Change a concept for good, in the weights or as a LoRA file."),
    "evaluation": ("evaluation", "Evaluation", "Measure on held-out prompts what a change does."),
    "testbed": ("testbed", "Testbed", "Use models whose inside is known."),
    "report": ("report", "Plots and reports", "Show results."),
}
ERRORS = ("errors", "Errors", "Catch what neuroscope refuses. `NeuroscopeError` catches all of them.")


def room(name: str) -> str:
    """The room that a public name comes from: "core" for `Concept`, "errors" for an exception."""
    value = getattr(ns, name)
    if isinstance(value, type) and issubclass(value, Exception):
        return "errors"
    module = value.__name__ if isinstance(value, ModuleType) else value.__module__
    return str(module.split(".")[1])


def path(name: str) -> str:
    """Where a public name is defined, such as `neuroscope.core.concepts.Concept`."""
    value = getattr(ns, name)
    return value.__name__ if isinstance(value, ModuleType) else f"{value.__module__}.{value.__qualname__}"


def groups() -> dict[str, list[str]]:
    """By room, in the order of the pages, the public names of each group."""
    found: dict[str, list[str]] = {each: [] for each in (*GROUPS, "errors")}
    for name in ns.__all__:
        found[room(name)].append(name)
    return {each: names for each, names in found.items() if names}


def examples() -> dict[str, str]:
    """By public name, the block under its heading on the page of examples."""
    parts = re.split(r"^### `(\w+)`\n", EXAMPLES.read_text(), flags=re.MULTILINE)
    return {
        name: re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0].strip()
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def pages() -> dict[str, str]:
    """By its path in the site, the text of each page of the API."""
    shown = examples()
    written = {}
    for each, names in groups().items():
        page, title, lead = GROUPS.get(each, ERRORS)
        entries = (f"::: {path(name)}\n\n**Example**\n\n{shown[name]}\n" for name in names)
        written[f"api/{page}.md"] = "\n".join([f"# {title}\n\n{lead}\n", *entries])
    return written


def on_files(files: Any, *, config: Any) -> Any:
    """Adds the pages to the site (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    for source, text in pages().items():
        files.append(File.generated(config, source, content=text))
    return files
