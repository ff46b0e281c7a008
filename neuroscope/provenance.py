"""Where a result comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from: the model's family and name, the concept, and the repr of the method."""

    family: str = ""
    model: str = ""
    concept: str = ""
    method: str = ""
