"""What runs will cost, counted by the pipeline's own loop while its denoiser computes nothing."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from neuroscope.core.results.quality import Plan
from neuroscope.generation.batches import BatchContext, Row, Sweep
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.patch_runner import collect_steps, patches_beside
from neuroscope.generation.teacher_forcing import StepInput, Steps
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.graph import HookGraph


@contextmanager
def predicting_zeros(graph: HookGraph) -> Iterator[list[int]]:
    """Inside the block the denoiser predicts zeros without computing anything; it is put back on every way out.

    Yields:
        A list that fills with the number of rows of each call.
    """
    denoiser: nn.Module = uncompiled(graph.denoiser)
    signature, latents = inspect.signature(denoiser.forward), graph.family.arguments["latents"]
    config: Any = denoiser.config
    channels = getattr(config, "out_channels", None) or getattr(denoiser, "out_channels", None) or config.in_channels
    rows: list[int] = []

    @functools.wraps(denoiser.forward)
    def predict(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        noisy = given[latents]
        rows.append(len(noisy))
        shape = noisy.shape if graph.family.channels_last else (len(noisy), channels, *noisy.shape[2:])
        zeros = noisy.new_zeros(shape)
        return Transformer2DModelOutput(sample=zeros) if given.get("return_dict", True) else (zeros,)

    former = vars(denoiser).get("forward")
    vars(denoiser)["forward"] = predict
    try:
        yield rows
    finally:
        del vars(denoiser)["forward"]
        if former is not None:
            vars(denoiser)["forward"] = former


def rows_of_run(graph: HookGraph, generation: Mapping[str, Any], prompt: str, context: BatchContext | None = None) -> int:
    """The NFE of one image's run, whatever its scheduler and its guidance; no denoising step is computed.

    Args:
        graph: the model.
        generation: options of the pipeline.
        prompt: it is encoded.
        context: the block in which it runs, such as one that ends the run early.
    """
    with warnings.catch_warnings(), predicting_zeros(graph) as rows, graph.watch(lambda *_: None):
        warnings.simplefilter("ignore", UserWarning)  # the run itself will warn
        sweep = Sweep(graph, [prompt], generation, batch_size=1, space="latent")
        for _ in sweep.run([Row(prompt, 0)], context):
            pass
    return sum(rows)


def recorded_steps(experiment: Experiment, steps: Steps) -> tuple[int, tuple[StepInput, ...]]:
    """The NFE of a run that ends after the last of these steps, and the steps' inputs, whose sizes alone are right."""
    found: list[tuple[StepInput, ...]] = []
    context = partial(collect_steps, experiment.graph, steps, found, stop_after=True)
    rows = rows_of_run(experiment.graph, experiment.generation, experiment.pairs[0].present, context)
    return rows, found[0]


def plan_images(graph: HookGraph, prompts: Sequence[str], generation: Mapping[str, Any]) -> Plan:
    """The cost of one image a prompt."""
    rows = rows_of_run(graph, generation, prompts[0]) if prompts else 0
    return Plan(len(prompts), len(prompts) * rows)


def plan_runs(experiment: Experiment, runs: int, *, is_bound: bool = False) -> Plan:
    """The cost of so many whole runs of an experiment."""
    return Plan(runs, runs * rows_of_run(experiment.graph, experiment.generation, experiment.pairs[0].present), is_bound)


def plan_patches(experiment: Experiment, patches: int, *, is_bound: bool = False, beside: bool = True) -> Plan:
    """The cost of so many patches on every image, with the source, the target, and (with `beside`) what no layer carries."""
    each = 2 + patches + (len(patches_beside(experiment.graph)) if beside else 0)
    return plan_runs(experiment, len(experiment.image_keys) * each, is_bound=is_bound)
