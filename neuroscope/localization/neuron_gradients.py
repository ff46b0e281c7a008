"""Attribution by gradients: what each neuron does to single predictions, for all neurons at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from neuroscope.attribution.captum_attribution import KINDS, Kind, attribute
from neuroscope.attribution.patching_metric import PatchingMetric
from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.quality import Cost, Fidelity
from neuroscope.core.scores import NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.generation.batches import Row, Sweep
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, check_roles, keeping
from neuroscope.generation.teacher_forcing import StepInput
from neuroscope.localization._neuron_localization import NeuronLocalization, alone, normal_layers, single
from neuroscope.localization.neuron_ablation import NeuronAblation
from neuroscope.localization.screening.screen import check_fits

_FEWEST = 3
_CONVERGED = 0.1


@dataclass(frozen=True, kw_only=True, repr=False)
class NeuronGradient(NeuronLocalization):
    """Attribution of single predictions to all keys' and values' neurons, by gradients (with captum).

    One run of each prompt and seed is followed; at a few of its steps, what is attributed is how far the prediction goes
    towards the one of the prompt without the concept (see `PatchingMetric`). A neuron's score is its part of that share,
    summed over tokens and averaged over steps, prompts and seeds: of "integrated", all neurons' parts add up to what the
    chosen sites do together (completeness). What a neuron does to one prediction need not be what it does to an image: see
    `NeuronScores.fidelity`.

    Rows of the denoiser are counted as ever, and a row's backward pass as two rows more.

    Attributes:
        kind: "gradient": the gradient at the run's own prompt times the change of the activation (attribution patching,
            Nanda 2023; Kramár et al. 2024), cheapest, and blind where the model has saturated. "integrated": the mean gradient
            on the straight way to the other prompt's activations, times the change (Sundararajan et al. 2017).
        layers: the neurons of these layers; None for all.
        roles: of "key" and "value" sites, or of one of them.
        steps: at how many steps of the schedule, in the middle of as many equal parts.
        samples: at how many points of the way the gradient is taken ("integrated").
        fidelity: for how many neurons the exact effect on the first prompt and seed is measured too, in images and by the experiment's
            metric, as `NeuronAblation` does; half of them at random from the ranking's top quarter, half from the rest. 0 for none.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    kind: Kind = "integrated"
    layers: int | tuple[int, ...] | None = None
    roles: str | tuple[str, ...] = ROLES
    steps: int = 2
    samples: int = 4
    fidelity: int = 8

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "layers", normal_layers(self.layers))
        object.__setattr__(self, "roles", check_roles(self.roles))
        choose("kind", self.kind, tuple(KINDS))
        if self.steps < 1:
            raise InvalidInput(f"steps={self.steps} looks at no step of the schedule; give 1 or more")
        if self.samples < 1:
            raise InvalidInput(f"samples={self.samples} takes no gradient; give 1 or more")
        if self.fidelity and self.fidelity < _FEWEST:
            raise InvalidInput(f"fidelity={self.fidelity} neurons make no rank correlation; give at least {_FEWEST}, or 0 to leave it out")

    def __call__(self, experiment: Experiment) -> NeuronScores:
        """See `Localization`."""
        sites = self.sites(experiment)
        check_fits(experiment, self, sites.neuron_count, "neurons")
        with metered(experiment.graph.denoiser) as meter:
            looks = list(self._looks(experiment, sites))
            known = [look.parts for look in looks if not look.parts.isnan().any()]
            scores = torch.stack(known).mean(dim=0) if known else torch.zeros(sites.neuron_count, dtype=torch.float64)
            fidelity = self._checked(experiment, sites, scores, looks[0].parts) if self.fidelity else None
            cost = meter.cost + Cost(nfe=2 * sum(look.differentiated for look in looks))
        self._warn(looks)
        return replace(self.scores(experiment, sites, scores), fidelity=fidelity, cost=cost)

    def _looks(self, experiment: Experiment, sites: Sites) -> Iterator[_Look]:
        """What is seen in each image, after a run of its own for each; runs share batches."""
        sweep = Sweep(
            experiment.graph,
            [text for pair in experiment.pairs for text in pair],
            experiment.generation,
            batch_size=experiment.batch_size,
            space="latent",
        )
        kept: list[tuple[StepInput, ...]] = []
        pairs = [pair for pair in experiment.pairs for _ in experiment.seeds]
        rows = [Row(pair.present, seed) for pair in experiment.pairs for seed in experiment.seeds]
        with tqdm(total=len(rows), desc=f"attributing {experiment.name}", unit="image", disable=experiment.quiet) as bar:
            for batch, _ in sweep.run(rows, partial(keeping, experiment.graph, self.steps, kept, cut=True)):
                frames, kept[:] = list(kept), []
                for each in frames:
                    yield self._look(experiment, sites, each, sweep.conditions(pairs.pop(0).absent), sweep.batch_size)
                bar.update(len(batch))

    def _look(self, experiment: Experiment, sites: Sites, frames: Sequence[StepInput], other: Conditions, batch_size: int) -> _Look:
        """What is seen in the frames of one image in which the other prompt changes anything."""
        modules = [experiment.graph.module(site) for site in sites]
        ways = [way for frame in frames if (way := PatchingMetric(experiment.graph, frame, other, sites.paths)).length]
        parts = [attribute(way, modules, self.kind, self.samples, batch_size) for way in ways]
        if not parts:
            return _Look(torch.full((sites.neuron_count,), math.nan, dtype=torch.float64), 0.0, 0)
        gap = float(np.mean([part.sum().item() - way.end for part, way in zip(parts, ways, strict=True)]))
        return _Look(torch.stack(parts).mean(dim=0), gap, sum(way.differentiated for way in ways))

    def _checked(self, experiment: Experiment, sites: Sites, scores: Tensor, parts: Tensor) -> Fidelity:
        """Of a sample of neurons the parts in the first image, against their exact effects there."""
        order, rng = scores.argsort(descending=True, stable=True).numpy(), np.random.default_rng(0)
        count = min(self.fidelity, len(order))
        top, rest = np.split(order, [max(1, len(order) // 4)])
        strong = rng.choice(top, min(-(-count // 2), len(top)), replace=False)
        chosen = np.sort(np.concatenate([strong, rng.choice(rest, min(count - len(strong), len(rest)), replace=False)]))
        exact = NeuronAblation().measure(alone(experiment), [single(sites, int(number)) for number in chosen]).means()
        return Fidelity.between(parts[chosen].nan_to_num().numpy(), exact, "random neurons, half of them from the top quarter")

    def _warn(self, looks: Sequence[_Look]) -> None:
        gap = float(np.mean([look.gap for look in looks]))
        if all(look.parts.isnan().any() for look in looks):
            said = "the other prompt changes no prediction, so no neuron can be found by gradients; give other prompts, or more steps"
        elif self.kind != "gradient" and abs(gap) > _CONVERGED:
            said = f"the neurons' parts miss what their sites do together by {gap:+.0%} of the way with samples={self.samples}; give more"
        else:
            return
        warnings.warn(said, UserWarning, stacklevel=4)


class _Look(NamedTuple):
    """What was seen in one image: the neurons' parts, how far their sum is from the whole, and the rows with gradients."""

    parts: Float[Tensor, "neuron"]
    gap: float
    differentiated: int
