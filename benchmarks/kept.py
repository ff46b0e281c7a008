"""Results that are kept: one JSON file a benchmark, in sections of rows, beside the code that measures them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuroscope.core.artifacts import write_beside

FOLDER = Path(__file__).parent / "results"

Row = dict[str, Any]


class Kept:
    """The rows of a benchmark by section; each is written as it comes, so that a stopped run goes on.

    Args:
        path: the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sections: dict[str, list[Row]] = json.loads(path.read_text()) if path.exists() else {}

    def __getitem__(self, section: str) -> list[Row]:
        return self.sections.setdefault(section, [])

    def holds(self, section: str, **place: Any) -> bool:
        """Whether there is a row with these values."""
        return any(place.items() <= row.items() for row in self[section])

    def add(self, section: str, *rows: Mapping[str, Any]) -> None:
        """Appends rows and writes the file, one row a line."""
        self[section].extend(map(dict, rows))
        parts = [
            f"{json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]" for name, rows in self.sections.items()
        ]
        self._path.parent.mkdir(exist_ok=True)
        write_beside(self._path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
