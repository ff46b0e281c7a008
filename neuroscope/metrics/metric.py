"""Metrics: callables `(images, prompts) -> one score per image`; higher means more of the concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from neuroscope.core.videos import Video, frames_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from neuroscope.pipeline.graph import HookGraph


@runtime_checkable
class Metric(Protocol):
    """What `evaluate` and `localize` call: any object with a name and a call, such as a frozen dataclass of your own.

    A batch of images is scored at once, and in no fixed order, so a score must depend on its own image and prompt alone.
    `localize` compares means: scores need no fixed scale, but higher must mean more of the concept. A video is scored frame by frame,
    and has the mean of its frames' scores, unless the metric has `whole_videos = True`.
    """

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        ...

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """One float64 score per image.

        Args:
            images: RGB images of one size.
            prompts: the prompt that each image was made with.
        """
        ...


@runtime_checkable
class Bindable(Protocol):
    """A metric that depends on the model whose images it scores."""

    def bound_to(self, graph: HookGraph) -> Metric:
        """The metric for this model."""
        ...


@runtime_checkable
class Loads(Protocol):
    """A metric that loads a model of its own, whose content belongs to the keys of a ledger."""

    def loaded(self) -> Mapping[str, Any]:
        """The parts of that model, by name."""
        ...


@runtime_checkable
class Unbindable(Protocol):
    """A bound metric that holds a live model, and so is sent to other processes in another form."""

    def unbound(self) -> Bindable:
        """What becomes this metric again when it is bound to a replica of the model; data alone."""
        ...


def scores_of(metric: Metric, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
    """A metric's score of each image; of a video, the mean over its frames, unless the metric reads whole videos."""
    if getattr(metric, "whole_videos", False) or not any(isinstance(image, Video) for image in images):
        return [float(score) for score in metric(images, prompts)]
    frames = [frames_of(image) for image in images]
    texts = [prompt for prompt, each in zip(prompts, frames, strict=True) for _ in each]
    found = np.asarray(metric([frame for each in frames for frame in each], texts))
    ends = np.cumsum([len(each) for each in frames])
    return [float(part.mean()) for part in np.split(found, ends[:-1])]


def unbind(metric: Metric) -> Metric | Bindable:
    """What is sent of a metric to other processes, where it is bound again."""
    return metric.unbound() if isinstance(metric, Unbindable) else metric


def bind(metric: Metric | Bindable, graph: HookGraph) -> Metric:
    """The metric with the parts that depend on the model filled in, and with its own model loaded, before any image is made.

    Args:
        metric: returned as it is unless it has `bound_to`.
        graph: the model whose images will be scored.

    Raises:
        InvalidInput: the metric's own model cannot be loaded.
    """
    bound = metric.bound_to(graph) if isinstance(metric, Bindable) else metric
    if isinstance(bound, Loads):
        bound.loaded()
    return bound
