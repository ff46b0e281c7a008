"""The stages of a recipe: each is trained once, from the one before it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.testbed.loop import Schedule
from neuroscope.testbed.plant import Plant


@dataclass(frozen=True)
class Stage:
    """One training of a denoiser; each starts from the stage before it."""

    schedule: Schedule
    plant: Plant | None = None


def finished(place: Path, make: Callable[[Path], None]) -> Path:
    """`place` as `make` writes it; it appears only when complete, and is not made twice."""
    if not place.exists():
        unfinished = place.with_name(place.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        unfinished.replace(place)
    return place


def publish(pipe: Any, place: Path) -> Path:
    """Writes a pipeline in float16 to `place`, without the folders of this machine that its parts were loaded from."""
    pipe.to(torch.float16).save_pretrained(place)
    for file in place.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return place
