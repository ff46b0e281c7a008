"""Screens: cheap localisations, from single predictions on the frames of a run instead of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.core.effects import Effects, Probe
from neuroscope.core.errors import InvalidInput
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.quality import Cost, Fidelity
from neuroscope.generation.arguments import steps_of
from neuroscope.generation.experiment import Place, Study
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import Prober, Swapping, drawn
from neuroscope.generation.teacher_forcing import Forcing, Frame
from neuroscope.localization._localization import Localization

#: What a screen says of one frame: a number for each layer, from the frame, what the other prompt says, and both prompts.
Look = Callable[[Forcing, Frame, Conditions, tuple[str, str]], Float[np.ndarray, "layer"]]
_FEWEST = 3


def check_screen(steps: int, fidelity: int) -> None:
    """Raises InvalidInput for numbers of frames or of checked layers that say nothing."""
    if steps < 1:
        raise InvalidInput(f"steps={steps} looks at no step of the schedule; give 1 or more")
    if fidelity and fidelity < _FEWEST:
        raise InvalidInput(f"fidelity={fidelity} layers make no rank correlation; give at least {_FEWEST}, or 0 to leave it out")


def check_fits(study: Study, method: Any, count: int, counted: str) -> None:
    """Refuses more steps than the runs have, or more exact effects than there are layers or neurons, beyond the method's defaults.

    Args:
        study: the runs.
        method: a screen, with its options `steps` and `fidelity`.
        count: how many layers or neurons it scores.
        counted: what these are.

    Raises:
        InvalidInput: so many are not there.
    """
    run = steps_of(study.graph.pipe, study.generation)
    if run is not None and method.steps > max(run, type(method).steps):
        raise InvalidInput(f"steps={method.steps} are more than the {run} steps that are run; give at most these")
    if method.fidelity > max(count, type(method).fidelity):
        raise InvalidInput(f"fidelity={method.fidelity} are more than the model's {count} {counted}; give at most these")


def screened(study: Study, method: Localization, swapping: Swapping, look: Look, steps: int, fidelity: int) -> LayerScores:
    """A screen's scores of all pictures of a study, and its fidelity to exact effects."""
    check_fits(study, method, len(study.graph.sites.layers), "layers")
    with metered(study.graph.denoiser) as meter:
        prober, forcing = Prober(replace(study, keep_images=0), swapping), Forcing(study.graph)
        whole = drawn(study, 0)[: 1 if fidelity else 0]  # of which exact effects are made
        parts = ((whole, False), ([place for place in study.places if place not in whole], True))
        followed = [prober.follow(places, steps, cut=cut) for places, cut in parts if places]
        effects = view(prober, forcing, look, {place: frames for each in followed for place, frames in each.items()})
        checked = _checked(prober, effects, whole, fidelity) if fidelity else None
        cost = meter.cost + Cost(rows=forcing.rows)
    return LayerScores.of(effects, provenance=study.provenance(method), cost=cost, fidelity=checked)


def view(prober: Prober, forcing: Forcing, look: Look, followed: Mapping[Place, Sequence[Frame]]) -> Effects:
    """What a screen sees on the frames of some pictures: shares of the full change by layer and step; NaN for other pictures."""
    study = prober.study
    layers = study.graph.sites.layers
    found: dict[str, np.ndarray] = {}
    for (pair, seed), frames in followed.items():
        texts = prober.swapping.texts(study.pairs[pair])
        for frame in frames:
            part = f"step {frame.step + 1} of {frame.steps}"
            table = found.setdefault(part, np.full((len(layers), len(study.pairs), len(study.seeds)), np.nan))
            table[:, pair, study.seeds.index(seed)] = look(forcing, frame, prober.other(pair), texts)
    probes = tuple(Probe((layer,), part) for part in found for layer in layers)
    prompts = tuple(pair.present for pair in study.pairs)
    full = torch.ones(len(study.pairs), len(study.seeds), dtype=torch.float64)
    return Effects(probes, prompts, study.seeds, torch.from_numpy(np.concatenate(list(found.values()))), full, relative=True)


def share(predicted: Float[Tensor, "change channel height width"], source: Tensor, goal: Tensor) -> Float[np.ndarray, "change"]:
    """How far predictions moved along the way from the source's to the goal's; NaN where the goal's is the source's."""
    moved, way = ((each - source).flatten(1).double() for each in (predicted, goal))
    length = float(way.square().sum())
    if length <= _ROUNDING**2 * float(source.double().square().sum()):
        return np.full(len(predicted), np.nan)
    return ((moved * way).sum(dim=1) / length).cpu().numpy()


def _checked(prober: Prober, effects: Effects, places: Sequence[Place], count: int) -> Fidelity:
    """The rank correlation with exact effects on a picture: of half of the layers from the strongest quarter, others at random."""
    layers = np.array(prober.study.graph.sites.layers)
    estimates = effects.of_layers(layers.tolist())
    order, rng = np.argsort(-estimates, kind="stable"), np.random.default_rng(0)
    count = min(count, len(layers))
    first = order[: max(1, len(layers) // 4)]
    strong = rng.choice(first, min(len(first), -(-count // 2)), replace=False)
    weak = rng.choice(np.setdiff1d(order, strong), count - len(strong), replace=False)
    sample = np.sort(np.concatenate([strong, weak]))
    probes = [Probe((int(layers[number]),)) for number in sample]
    exact = prober.measure(probes, places).means()
    return Fidelity.between(estimates[sample], exact, "layers, half of them from the strongest quarter")


_ROUNDING = 1e-6
