"""Screens: cheap localisations that score layers on single predictions at recorded steps instead of on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.effects import Effects, Patch
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Cost, Fidelity, Plan
from neuroscope.generation.arguments import check_fits
from neuroscope.generation.dry_run import plan_runs, recorded_steps
from neuroscope.generation.experiment import Experiment, ImageKey, Localization
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import PatchRunner, PatchSpec, random_order
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing


class TargetedStep(NamedTuple):
    """A recorded step of an unchanged run, with what its patched layers read.

    Attributes:
        step: the recorded step.
        target: the target's conditions.
        texts: the prompts of source and target.
    """

    step: StepInput
    target: Conditions
    texts: tuple[str, str]


#: Scores all layers at each of some recorded steps.
StepScorer = Callable[[TeacherForcing, Sequence[TargetedStep]], Sequence[Float[np.ndarray, "layer"]]]
#: A rank correlation needs this many layers.
_FEWEST = 3
_ROUNDING = 1e-6


def check_screen(steps: int, fidelity: int) -> None:
    """Raises InvalidInput for fewer than one step, and for too few layers to compare with exact effects."""
    if steps < 1:
        raise InvalidInput(f"steps={steps} looks at no step of the schedule; give 1 or more")
    if fidelity and fidelity < _FEWEST:
        raise InvalidInput(f"fidelity={fidelity} is too few layers for a rank correlation; give at least {_FEWEST}, or 0 to leave it out")


def run_screen(experiment: Experiment, method: Localization, spec: PatchSpec, scorer: StepScorer, steps: int, fidelity: int) -> LayerScores:
    """Scores all layers on all images of an experiment by one screen.

    Args:
        experiment: the prompts, seeds and metric.
        method: the screen, for the provenance and for the check of its options.
        spec: what is patched.
        scorer: scores the layers at recorded steps.
        steps: at how many steps of each unchanged run.
        fidelity: how many layers are measured exactly too, on one image; 0 for none.

    Raises:
        InvalidInput: more steps than runs have, or more layers than the model has.
    """
    check_fits(experiment.graph.pipe, experiment.generation, method, len(experiment.graph.sites.layers), "layer")
    with metered(experiment.graph.denoiser) as meter:
        runner = PatchRunner(replace(experiment, keep_images=0), spec)
        forcing = TeacherForcing(experiment.graph, runner.sweep.fits)
        exact = random_order(experiment, 0)[: 1 if fidelity else 0]
        others = [image_key for image_key in experiment.image_keys if image_key not in exact]
        recorded = dict(runner.record_steps(exact, steps)) if exact else {}
        recorded |= runner.record_steps(others, steps, stop_after=True) if others else {}
        effects = effects_of_steps(runner, forcing, scorer, recorded)
        checked = _fidelity(runner, effects, exact, fidelity) if fidelity else None
        cost = meter.cost + Cost(nfe=forcing.nfe)
    return LayerScores.of(effects, provenance=experiment.provenance(method), cost=cost, fidelity=checked)


def plan_screen(experiment: Experiment, method: Localization, nfe_of_step: Callable[[StepInput], float], *, is_bound: bool = False) -> Plan:
    """What `run_screen` will cost.

    Args:
        experiment: the prompts, seeds and metric.
        method: the screen, with its options `steps` and `fidelity`.
        nfe_of_step: the NFE of scoring all layers at one recorded step.
        is_bound: whether these are upper bounds.
    """
    options: Any = method
    layers, images = len(experiment.graph.sites.layers), len(experiment.image_keys)
    check_fits(experiment.graph.pipe, experiment.generation, method, layers, "layer")
    truncated, recorded = recorded_steps(experiment, options.steps)
    exact = 1 if options.fidelity else 0
    whole = plan_runs(experiment, exact * (2 + min(options.fidelity, layers)))  # its source is recorded, and is measured once
    scoring = images * sum(map(nfe_of_step, recorded))
    return Plan(whole.images, whole.nfe + (images - exact) * truncated + scoring, is_bound)


def effects_of_steps(
    runner: PatchRunner, forcing: TeacherForcing, scorer: StepScorer, recorded: Mapping[ImageKey, Sequence[StepInput]]
) -> Effects:
    """A scorer's shares of the total effect, with a patch for each layer and step.

    Args:
        runner: holds the prompts.
        forcing: makes the forced calls.
        scorer: scores the layers at the steps.
        recorded: the recorded steps of each image. Images that are missing have NaN.
    """
    experiment = runner.experiment
    layers = experiment.graph.sites.layers
    found: dict[str, np.ndarray] = {}
    places = [(image_key, step) for image_key, steps in recorded.items() for step in steps]
    with tqdm(total=len(places), desc=f"scoring {experiment.name}", unit="step", disable=experiment.quiet) as bar:
        forcing.progress = bar.update
        scores = scorer(forcing, targeted_steps(runner, places))
    for ((pair, seed), step), score in zip(places, scores, strict=True):
        part = f"step {step.step + 1} of {step.steps}"
        table = found.setdefault(part, np.full((len(layers), len(experiment.pairs), len(experiment.seeds)), np.nan))
        table[:, pair, experiment.seeds.index(seed)] = score
    patches = tuple(Patch((layer,), part) for part in found for layer in layers)
    prompts = tuple(pair.present for pair in experiment.pairs)
    total = torch.ones(len(experiment.pairs), len(experiment.seeds), dtype=torch.float64)
    return Effects(patches, prompts, experiment.seeds, torch.from_numpy(np.concatenate(list(found.values()))), total, relative=True)


def targeted_steps(runner: PatchRunner, places: Iterable[tuple[ImageKey, StepInput]]) -> list[TargetedStep]:
    """Recorded steps of images, with what their patched layers read."""
    experiment, spec = runner.experiment, runner.spec
    return [TargetedStep(step, runner.target(pair), spec.texts(experiment.pairs[pair])) for (pair, _), step in places]


def one_by_one(
    score: Callable[[TeacherForcing, TargetedStep], Float[np.ndarray, "layer"]], forcing: TeacherForcing, steps: Sequence[TargetedStep]
) -> list[Float[np.ndarray, "layer"]]:
    """A `StepScorer` that scores one step after the other."""
    found = []
    for each in steps:
        found.append(score(forcing, each))
        forcing.progress(1)
    return found


def share(predicted: Float[Tensor, "change channel *place"], source: Tensor, target: Tensor) -> Float[np.ndarray, "change"]:
    """The projection of each prediction's change on the total effect: 0 at the source, 1 at the target.

    It is NaN where source and target are equal up to rounding.
    """
    moved, total = ((each - source).flatten(1).double() for each in (predicted, target))
    length = float(total.square().sum())
    if length <= _ROUNDING**2 * float(source.double().square().sum()):
        return np.full(len(predicted), np.nan)
    return ((moved * total).sum(dim=1) / length).cpu().numpy()


def _fidelity(runner: PatchRunner, effects: Effects, image_keys: Sequence[ImageKey], count: int) -> Fidelity:
    """The rank correlation with exact effects on an image: half of the layers from the strongest quarter, the others at random."""
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
