"""The recipes of the bundled models, from nothing to the files that ship."""

from __future__ import annotations

from pathlib import Path

from benchmarks.testbed import pixart, sd1
from neuroscope.core.errors import choose

_RECIPES = dict.fromkeys(sd1.MODELS, sd1.train) | dict.fromkeys(pixart.MODELS, pixart.train)
MODELS = tuple(_RECIPES)
#: The plants of the models that have one.
PLANTS = {name: stage.plant for name, stage in (sd1.STAGES | pixart.STAGES).items() if stage.plant is not None}


def train(name: str, folder: Path, quiet: bool = False) -> Path:
    """Trains a bundled model and all that it needs, and returns its folder under `folder/models`.

    Each stage keeps checkpoints in a folder of its own: a run that was stopped goes on from them, and finished stages are
    not trained again.

    Raises:
        InvalidInput: an unknown name.
    """
    choose("bundled model", name, MODELS)
    return _RECIPES[name](name, folder, quiet)
