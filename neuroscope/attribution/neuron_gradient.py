"""Gradients of neurons on noised images: how far each moves single predictions towards those without the concept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from neuroscope.attribution._causal_attribution import LEAST, CausalAttribution
from neuroscope.attribution.patching_metric import GRADIENT_MEMORY
from neuroscope.attribution.target_distance import TargetDistance
from neuroscope.core import checks
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.quality import Cost, Plan
from neuroscope.core.results.scores import NeuronScores
from neuroscope.core.sites import Sites
from neuroscope.generation.batches import Row, Sweep, fitted_batch_size
from neuroscope.generation.dry_run import recorded_steps
from neuroscope.generation.experiment import Experiment, ImageKey
from neuroscope.generation.metering import metered
from neuroscope.generation.patch_runner import ROLES, check_roles, collect_steps
from neuroscope.generation.teacher_forcing import StepInput, joined
from neuroscope.metrics.shares import LatentShare
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.hooking.recomputing import can_recompute
from neuroscope.pipeline.noising import NoisedRun, NoiseLevels

#: Distances below this are rounding.
_ROUNDING = 1e-6


class _Draw(NamedTuple):
    """One gradient to take: of which image, at which place of its schedule, at which share of the way to the target's prompt."""

    image: ImageKey
    place: float
    share: float
    seed: int


@dataclass(frozen=True, kw_only=True, repr=False)
class NeuronGradient(CausalAttribution):
    """Expected gradients on noised images: how far each neuron moves predictions towards those for the prompt without the concept.

    The first call of a run tells what image it leads to. This estimate is noised again to a random step of the schedule, the chosen sites
    read a random share of the other prompt (one share for all of them), and the gradient of the distance to the prediction for the
    other prompt is taken there. A neuron's score is the mean, over such samples, of its gradient times its change from the one
    prompt to the other, summed over tokens: the drop of the distance that it accounts for, as a share of the whole distance (expected
    gradients: Erion et al. 2021, here over images, noise and the straight way of integrated gradients: Sundararajan et al. 2017).
    Scores have standard errors over samples. A p-value asks whether the score is above `least`, by a one-sided t-test: against 0, every
    effect that is steady would count, however small.

    The cost does not depend on the number of steps, and hardly on the number of prompts: one guided call for each prompt and seed, and four
    NFE a sample (the prediction for the other prompt, the prediction, and its backward pass, which counts as two).

    Where blocks rewrite the text (Stable Diffusion 3, FLUX), the sites read the other prompt as the image does (see `ContextSwap`, "edge"):
    a neuron's change is from what it gives in the row itself to what it gives in the prediction for the other prompt, from the same
    noisy latents. The pooled text stays, so that scores of all neurons add up to 1 less its share.

    Attributes:
        roles: score the neurons of "key" and "value" sites, or of one of them.
        samples: how many gradients to take. They go round all prompts and seeds; with fewer samples than these, some are left out.
        least: the share of the way that a neuron must account for to count in p- and q-values, 0 or more. It changes no score.
        recompute: whether the backward pass computes the denoiser's blocks again instead of keeping what they give (gradient
            checkpointing), which takes less memory and one more NFE a sample. None: where the model can, and the gradients of one
            image would not fit half of the free memory.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, a scheduler whose noise levels are not known, or a metric other than
            `LatentShare`.
        NonFiniteActivation: when it runs, a prediction or a gradient is NaN or infinite.
    """

    default_pairs: ClassVar[int | None] = None
    of_rewritten_text: ClassVar[bool] = True

    roles: str | tuple[str, ...] = ROLES
    samples: int = 32
    least: float = LEAST
    recompute: bool | None = None

    @property
    def makes_images(self) -> bool:
        """False: it takes gradients of single predictions."""
        return False

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        if self.recompute is not None:
            checks.flag("recompute", self.recompute)
        object.__setattr__(self, "roles", check_roles(self.roles))
        checks.whole("samples", self.samples)
        checks.finite("least", self.least, least=0)

    def __call__(self, experiment: Experiment) -> NeuronScores:
        """Scores each neuron by gradients; see `CausalAttribution.__call__`."""
        self._check(experiment)
        sites = self.sites(experiment)
        draws = self._draws(experiment)
        texts = [text for pair in experiment.pairs for text in pair]
        sweep = Sweep(experiment.graph, texts, experiment.generation, batch_size=experiment.batch_size, space="latent")
        with metered(experiment.graph.denoiser) as meter:
            runs = self._first_calls(experiment, sweep, list(dict.fromkeys(draw.image for draw in draws)))
            batches = list(self._in_batches(experiment, sweep, sites, draws, runs))
            cost = meter.cost + Cost(nfe=(2 + self._recomputes(experiment)) * len(draws))
        by_sample, distances = (torch.cat(part) for part in zip(*batches, strict=True))
        if distances.max() < _ROUNDING:
            warnings.warn(
                "the other prompt changes no prediction, so no neuron can be found; give other prompts", UserWarning, stacklevel=3
            )
        # half of the way is the mean share, and so half of the distance is left on average
        whole = 2 * distances.mean()
        if experiment.graph.spec.rewritten:  # the pooled text reaches every block, stays as it is, and may hold much of the distance
            whole = _whole(by_sample, distances, [draw.share for draw in draws])
        return replace(self.mean_scores(experiment, sites, by_sample / whole.clamp(min=_ROUNDING), self.least), cost=cost)

    def plan(self, experiment: Experiment) -> Plan:
        """See `ExperimentMethod.plan`."""
        self._check(experiment)
        images = min(self.samples, len(experiment.image_keys))
        first, _ = recorded_steps(experiment, [0])
        return Plan(0, images * first + (4 + self._recomputes(experiment)) * self.samples)

    def _check(self, experiment: Experiment) -> None:
        """Raises InvalidInput for a metric that would be ignored."""
        if not isinstance(experiment.metric, LatentShare):
            raise InvalidInput(
                f"{experiment.metric!r} would be ignored: {self!r} makes no image, and measures how far predictions move; leave the metric "
                "out, or give ns.NeuronAblation()"
            )
        graph = experiment.graph
        if self.recompute and not can_recompute(graph.family, uncompiled(graph.denoiser)):
            name = type(uncompiled(graph.denoiser)).__name__
            raise InvalidInput(f"recompute=True is not possible: {name} has no gradient checkpointing that works; leave it out")

    def _recomputes(self, experiment: Experiment) -> bool:
        """Whether the backward pass computes blocks again."""
        if self.recompute is not None:
            return self.recompute
        graph = experiment.graph
        fits = fitted_batch_size(graph, experiment.generation) >= GRADIENT_MEMORY
        return not fits and can_recompute(graph.family, uncompiled(graph.denoiser))

    def _draws(self, experiment: Experiment) -> list[_Draw]:
        """The samples, with places and shares that are spread evenly over their ranges (stratified, in random order)."""
        rng = np.random.default_rng(experiment.seeds[0] % 2**32)
        keys = experiment.image_keys
        count = min(self.samples, len(keys))
        chosen = [keys[number * len(keys) // count] for number in range(count)]
        places, shares = ((rng.permutation(self.samples) + rng.random(self.samples)) / self.samples for _ in range(2))
        return [
            _Draw(chosen[number % count], float(places[number]), float(shares[number]), int(rng.integers(2**31)))
            for number in range(self.samples)
        ]

    def _first_calls(self, experiment: Experiment, sweep: Sweep, images: Sequence[ImageKey]) -> dict[ImageKey, NoisedRun]:
        """The run of each image, of which only the first call is made."""
        graph = experiment.graph
        recorded: list[tuple[StepInput, ...]] = []
        record = partial(collect_steps, graph, [0], recorded, stop_after=True)
        for _ in sweep.run([Row(experiment.pairs[pair].present, seed) for pair, seed in images], record):
            pass
        names = graph.family.arguments
        noise = NoiseLevels.of(graph.pipe.scheduler, float(torch.as_tensor(recorded[0][0].inputs[names["timestep"]]).flatten()[0]))
        return {image: NoisedRun(noise, step.inputs, step.output, names) for image, (step,) in zip(images, recorded, strict=True)}

    def _in_batches(
        self, experiment: Experiment, sweep: Sweep, sites: Sites, draws: Sequence[_Draw], runs: dict[ImageKey, NoisedRun]
    ) -> Iterator[tuple[Float[Tensor, "sample neuron"], Float[Tensor, "sample"]]]:
        """Each neuron's drop of the distance, and the distance itself, at the samples."""
        size, recompute = max(1, sweep.fits // GRADIENT_MEMORY), self._recomputes(experiment)
        with tqdm(total=len(draws), desc=f"ranking {experiment.name}", unit="sample", disable=experiment.quiet) as bar:
            for first in range(0, len(draws), size):
                batch = draws[first : first + size]
                pairs = [experiment.pairs[draw.image[0]] for draw in batch]
                source, target = (Conditions.of([sweep.conditions(pair[arm]) for pair in pairs]) for arm in (0, 1))
                inputs = joined([runs[draw.image].at(draw.place, draw.seed) for draw in batch], range(len(batch)))
                distance = TargetDistance(experiment.graph, inputs, target, recompute)
                drops, distances = distance.drops(sites, [draw.share for draw in batch], source)
                yield drops.cpu(), distances.cpu()
                bar.update(len(batch))


def _whole(drops: Float[Tensor, "sample neuron"], distances: Float[Tensor, "sample"], shares: Sequence[float]) -> Float[Tensor, ""]:
    """The mean distance at the source: what is left at the samples' shares, and what went on the way to these, which is not sampled.

    Over even shares s of a way from 0 to 1, the mean of what went before s is the mean of (1 - s) · the drop at s.
    """
    left = 1 - torch.tensor(shares, dtype=torch.float64)
    return (distances + left * drops.sum(dim=1)).mean()
