"""Screens: cheap localisations, from single predictions on the frames of a run instead of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.core.effects import Effects, Patch
from neuroscope.core.errors import InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.quality import Cost, Fidelity
from neuroscope.generation.arguments import steps_of
from neuroscope.generation.experiment import Experiment, ImageKey
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import PatchRunner, PatchSpec, drawn
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.localization._localization import Localization

#: What a screen says of one frame: a number for each layer, from the frame, what the other prompt says, and both prompts.
Look = Callable[[TeacherForcing, StepInput, Conditions, tuple[str, str]], Float[np.ndarray, "layer"]]
_FEWEST = 3


def check_screen(steps: int, fidelity: int) -> None:
    """Raises InvalidInput for numbers of frames or of checked layers that say nothing."""
    if steps < 1:
        raise InvalidInput(f"steps={steps} looks at no step of the schedule; give 1 or more")
    if fidelity and fidelity < _FEWEST:
        raise InvalidInput(f"fidelity={fidelity} layers make no rank correlation; give at least {_FEWEST}, or 0 to leave it out")


def check_fits(experiment: Experiment, method: Any, count: int, counted: str) -> None:
    """Refuses more steps than the runs have, or more exact effects than there are layers or neurons, beyond the method's defaults.

    Args:
        experiment: the runs.
        method: a screen, with its options `steps` and `fidelity`.
        count: how many layers or neurons it scores.
        counted: what these are.

    Raises:
        InvalidInput: so many are not there.
    """
    run = steps_of(experiment.graph.pipe, experiment.generation)
    if run is not None and method.steps > max(run, type(method).steps):
        raise InvalidInput(f"steps={method.steps} are more than the {run} steps that are run; give at most these")
    if method.fidelity > max(count, type(method).fidelity):
        raise InvalidInput(f"fidelity={method.fidelity} are more than the model's {count} {counted}; give at most these")


def screened(
    experiment: Experiment, method: Localization[LayerScores], spec: PatchSpec, look: Look, steps: int, fidelity: int
) -> LayerScores:
    """A screen's scores of all images of an experiment, and its fidelity to exact effects."""
    check_fits(experiment, method, len(experiment.graph.sites.layers), "layers")
    with metered(experiment.graph.denoiser) as meter:
        runner, forcing = PatchRunner(replace(experiment, keep_images=0), spec), TeacherForcing(experiment.graph)
        whole = drawn(experiment, 0)[: 1 if fidelity else 0]  # of which exact effects are made
        parts = ((whole, False), ([image_key for image_key in experiment.image_keys if image_key not in whole], True))
        followed = [runner.follow(image_keys, steps, cut=cut) for image_keys, cut in parts if image_keys]
        effects = view(runner, forcing, look, {image_key: frames for each in followed for image_key, frames in each.items()})
        checked = _checked(runner, effects, whole, fidelity) if fidelity else None
        cost = meter.cost + Cost(nfe=forcing.rows)
    return LayerScores.of(effects, provenance=experiment.provenance(method), cost=cost, fidelity=checked)


def view(runner: PatchRunner, forcing: TeacherForcing, look: Look, followed: Mapping[ImageKey, Sequence[StepInput]]) -> Effects:
    """What a screen sees on the frames of some images: shares of the total effect by layer and step; NaN for other images."""
    experiment = runner.experiment
    layers = experiment.graph.sites.layers
    found: dict[str, np.ndarray] = {}
    for (pair, seed), frames in followed.items():
        texts = runner.spec.texts(experiment.pairs[pair])
        for frame in frames:
            part = f"step {frame.step + 1} of {frame.steps}"
            table = found.setdefault(part, np.full((len(layers), len(experiment.pairs), len(experiment.seeds)), np.nan))
            table[:, pair, experiment.seeds.index(seed)] = look(forcing, frame, runner.other(pair), texts)
    patches = tuple(Patch((layer,), part) for part in found for layer in layers)
    prompts = tuple(pair.present for pair in experiment.pairs)
    full = torch.ones(len(experiment.pairs), len(experiment.seeds), dtype=torch.float64)
    return Effects(patches, prompts, experiment.seeds, torch.from_numpy(np.concatenate(list(found.values()))), full, relative=True)


def share(predicted: Float[Tensor, "change channel height width"], source: Tensor, target: Tensor) -> Float[np.ndarray, "change"]:
    """How far predictions moved along the way from the source's to the target's; NaN where the target's is the source's."""
    moved, way = ((each - source).flatten(1).double() for each in (predicted, target))
    length = float(way.square().sum())
    if length <= _ROUNDING**2 * float(source.double().square().sum()):
        return np.full(len(predicted), np.nan)
    return ((moved * way).sum(dim=1) / length).cpu().numpy()


def _checked(runner: PatchRunner, effects: Effects, image_keys: Sequence[ImageKey], count: int) -> Fidelity:
    """The rank correlation with exact effects on an image: of half of the layers from the strongest quarter, others at random."""
    layers = np.array(runner.experiment.graph.sites.layers)
    estimates = effects.of_layers(layers.tolist())
    order, rng = np.argsort(-estimates, kind="stable"), np.random.default_rng(0)
    count = min(count, len(layers))
    first = order[: max(1, len(layers) // 4)]
    strong = rng.choice(first, min(len(first), -(-count // 2)), replace=False)
    weak = rng.choice(np.setdiff1d(order, strong), count - len(strong), replace=False)
    sample = np.sort(np.concatenate([strong, weak]))
    patches = [Patch((int(layers[number]),)) for number in sample]
    exact = runner.measure(patches, image_keys).means()
    return Fidelity.between(estimates[sample], exact, "layers, half of them from the strongest quarter")


_ROUNDING = 1e-6
