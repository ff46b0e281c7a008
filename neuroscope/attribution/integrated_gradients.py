"""Gradients of neurons: what each does to single predictions, for all neurons at once."""

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

from neuroscope.attribution._causal_attribution import LEAST, CausalAttribution, first_image, single
from neuroscope.attribution.captum_attribution import KINDS, Kind, attribute
from neuroscope.attribution.neuron_ablation import NeuronAblation
from neuroscope.attribution.patching_metric import PatchingMetric
from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.results.quality import Cost, Fidelity
from neuroscope.core.results.scores import NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.generation.arguments import check_fits
from neuroscope.generation.batches import Row, Sweep
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, check_roles, collect_steps
from neuroscope.generation.teacher_forcing import StepInput

#: A rank correlation needs this many neurons.
_FEWEST = 3
#: A gap up to this share of the total effect counts as converged.
_CONVERGED = 0.1


@dataclass(frozen=True, kw_only=True, repr=False)
class IntegratedGradients(CausalAttribution):
    """Attribution of single predictions to all key and value neurons, by gradients (with captum).

    The unchanged run of each prompt and seed is recorded at a few of its steps. There, the effect of the prompt without the concept
    on the prediction (see `PatchingMetric`) is attributed to the neurons. A score is a share of that total effect, summed over tokens and
    averaged over steps, and then over images, a prompt and a seed each. From three images on, scores have standard errors, and p-values
    of whether they are above `least`, by a one-sided t-test over images. With "integrated", all scores add up to the effect of swapping
    all chosen sites (completeness). A neuron's effect on one prediction may differ from its effect on the image: see
    `NeuronScores.fidelity`.

    The cost counts a row's backward pass as two NFE more.

    Attributes:
        kind: "gradient" is the gradient at the source times the change of the activation (attribution patching: Nanda 2023; Kramár et al.
            2024). It is the cheapest, and misses what a saturated model hides. "integrated" averages the gradient along the straight line
            from the source's activations to the target's (integrated gradients: Sundararajan et al. 2017, equation 1).
        roles: score the neurons of "key" and "value" sites, or of one of them.
        steps: at how many steps: the middles of as many equal parts of the schedule.
        samples: at how many points of the line "integrated" takes gradients.
        fidelity: for how many neurons the exact effect on the first image is measured too, by the experiment's metric, as `NeuronAblation`
            does. Half of them come from the ranking's top quarter, half from the rest, at random. 0 for none.
        least: the share of the total effect that a neuron must account for to count in p- and q-values, 0 or more. It changes no score.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, more steps or neurons than there are.
    """

    kind: Kind = "integrated"
    roles: str | tuple[str, ...] = ROLES
    steps: int = 2
    samples: int = 4
    fidelity: int = 8
    least: float = LEAST

    @property
    def makes_images(self) -> bool:
        """Whether it compares its scores with exact effects; gradients are taken in this process."""
        return bool(self.fidelity)

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        object.__setattr__(self, "roles", check_roles(self.roles))
        choose("kind", self.kind, tuple(KINDS))
        if self.steps < 1:
            raise InvalidInput(f"steps={self.steps} looks at no step of the schedule; give 1 or more")
        if self.samples < 1:
            raise InvalidInput(f"samples={self.samples} takes no gradient; give 1 or more")
        checks.finite("least", self.least, least=0)
        if self.fidelity and self.fidelity < _FEWEST:
            raise InvalidInput(
                f"fidelity={self.fidelity} is too few neurons for a rank correlation; give at least {_FEWEST}, or 0 to leave it out"
            )

    @property
    def not_of_rewritten_text(self) -> str:
        """See `ExperimentMethod.not_of_rewritten_text`."""
        return "It follows whole runs to a target that prompts give, and there the image moves it at every step"

    def __call__(self, experiment: Experiment) -> NeuronScores:
        """Scores each neuron by gradients; see `CausalAttribution.__call__`."""
        sites = self.sites(experiment)
        check_fits(experiment.graph.pipe, experiment.generation, self, sites.neuron_count, "neuron")
        with metered(experiment.graph.denoiser) as meter:
            images = list(self._by_image(experiment, sites))
            known = [image.scores for image in images if not image.scores.isnan().any()]
            by_image = torch.stack(known) if known else torch.zeros(1, sites.neuron_count, dtype=torch.float64)
            fidelity = self._fidelity_of(experiment, sites, by_image.mean(dim=0), images[0].scores) if self.fidelity else None
            cost = meter.cost + Cost(nfe=2 * sum(image.rows_with_gradients for image in images))
        self._warn(images)
        return replace(self.mean_scores(experiment, sites, by_image, self.least), fidelity=fidelity, cost=cost)

    def _by_image(self, experiment: Experiment, sites: Sites) -> Iterator[_Image]:
        """The attributions of each image, in order. The unchanged runs share batches."""
        sweep = Sweep(
            experiment.graph,
            [text for pair in experiment.pairs for text in pair],
            experiment.generation,
            batch_size=experiment.batch_size,
            space="latent",
        )
        recorded: list[tuple[StepInput, ...]] = []
        pairs = [pair for pair in experiment.pairs for _ in experiment.seeds]
        rows = [Row(pair.present, seed) for pair in experiment.pairs for seed in experiment.seeds]
        record = partial(collect_steps, experiment.graph, self.steps, recorded, stop_after=True)
        with tqdm(total=len(rows), desc=f"attributing {experiment.name}", unit="image", disable=experiment.quiet) as bar:
            for batch, _ in sweep.run(rows, record):
                images, recorded[:] = list(recorded), []
                for steps in images:
                    yield self._of_image(experiment, sites, steps, sweep.conditions(pairs.pop(0).absent), sweep.fits)
                bar.update(len(batch))

    def _of_image(self, experiment: Experiment, sites: Sites, steps: Sequence[StepInput], target: Conditions, batch_size: int) -> _Image:
        """The attributions at the steps of one image, where the target's prompt changes anything."""
        graph = experiment.graph
        modules = [graph.module(site) for site in sites]
        metrics = [metric for step in steps if (metric := PatchingMetric(graph, step, target, sites.paths)).length]
        parts = [attribute(metric, modules, self.kind, self.samples, batch_size) for metric in metrics]
        if not parts:
            return _Image(torch.full((sites.neuron_count,), math.nan, dtype=torch.float64), 0.0, 0)
        gap = float(np.mean([part.sum().item() - metric.end for part, metric in zip(parts, metrics, strict=True)]))
        return _Image(torch.stack(parts).mean(dim=0), gap, sum(metric.rows_with_gradients for metric in metrics))

    def _fidelity_of(
        self, experiment: Experiment, sites: Sites, scores: Float[Tensor, "neuron"], first: Float[Tensor, "neuron"]
    ) -> Fidelity:
        """The rank correlation of the first image's scores with exact effects, on a sample of the ranking's neurons."""
        order, rng = scores.argsort(descending=True, stable=True).numpy(), np.random.default_rng(0)
        count = min(self.fidelity, len(order))
        top, rest = np.split(order, [max(1, len(order) // 4)])
        strong = rng.choice(top, min(-(-count // 2), len(top)), replace=False)
        chosen = np.sort(np.concatenate([strong, rng.choice(rest, min(count - len(strong), len(rest)), replace=False)]))
        exact = NeuronAblation().measure(first_image(experiment), [single(sites, int(number)) for number in chosen]).means()
        return Fidelity.between(first[chosen].nan_to_num().numpy(), exact, "random neurons, half of them from the top quarter")

    def _warn(self, images: Sequence[_Image]) -> None:
        """Warns where there is nothing to attribute, and where scores miss what they should add up to."""
        gap = float(np.mean([image.gap for image in images]))
        if all(image.scores.isnan().any() for image in images):
            said = "the other prompt changes no prediction, so no neuron can be found by gradients; give other prompts, or more steps"
        elif self.kind != "gradient" and abs(gap) > _CONVERGED:
            said = f"the neurons' parts miss what their sites do together by {gap:+.0%} of the way with samples={self.samples}; give more"
        else:
            return
        warnings.warn(said, UserWarning, stacklevel=4)


class _Image(NamedTuple):
    """The attributions of one image.

    Attributes:
        scores: NaN where the target's prompt changes no prediction.
        gap: by how much their sum misses the effect of swapping all sites, as a share of the total effect.
        rows_with_gradients: how many rows of the denoiser were computed with gradients.
    """

    scores: Float[Tensor, "neuron"]
    gap: float
    rows_with_gradients: int
