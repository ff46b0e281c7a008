"""The ledger of a long run: finished rows' scores by a key of all that they depend on, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes

from neuroscope._errors import InvalidFile
from neuroscope.graph import HookGraph
from neuroscope.interventions import Intervention


def origin(graph: HookGraph, generation: Mapping[str, Any], *, fingerprint: bool) -> list[Any]:
    """All that the pictures of a model depend on beside prompt, seed and changes, as plain values."""
    scheduler = [type(graph.pipe.scheduler).__name__, sorted(map(repr, graph.pipe.scheduler.config.items()))]
    return [graph.model, graph.fingerprint() if fingerprint else "", scheduler, sorted(map(repr, generation.items()))]


def key_of(*parts: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def digest(change: Sequence[Intervention], made_by: Sequence[Any]) -> str:
    """A hash of interventions, with their tensors, and of where they are applied."""
    digest = hashlib.sha256(json.dumps(made_by).encode())
    for each in change:
        tensors, header = each.to_parts()
        digest.update(json.dumps([each.kind, header], sort_keys=True).encode())
        digest.update(to_bytes({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}))
    return digest.hexdigest()


class Ledger:
    """The finished rows' scores by key, appended to a JSON-lines file as they come; without a path, in memory alone.

    Raises:
        InvalidFile: the file cannot be written or read.
    """

    def __init__(self, path: Path | None) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self._path = path
        if path is None:
            return
        try:
            text = path.read_text() if path.exists() else ""
            with path.open("a") as file:
                file.write("\n" if text and not text.endswith("\n") else "")
        except OSError as error:
            raise InvalidFile(f"{path} cannot be written: {error.strerror}; choose another place") from error
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{path} is no text file; choose another place for the rows") from error
        for line in text.splitlines():
            self.rows |= _parsed(line)

    def add(self, rows: Mapping[str, dict[str, float]]) -> None:
        """Keeps finished rows; raises InvalidFile where they cannot be written."""
        self.rows |= rows
        if self._path is None:
            return
        try:
            with self._path.open("a") as file:
                file.writelines(json.dumps({"key": key, "scores": scores}) + "\n" for key, scores in rows.items())
        except OSError as error:
            raise InvalidFile(
                f"{self._path} cannot be written: {error.strerror}; finished images are kept, so run again with room"
            ) from error


def _parsed(line: str) -> dict[str, dict[str, float]]:
    """A finished job; nothing for a line that a kill cut short."""
    try:
        row = json.loads(line)
        return {row["key"]: row["scores"]}
    except (json.JSONDecodeError, KeyError, TypeError):
        return {}
