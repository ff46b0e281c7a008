"""Keys: hashes of all that a score depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from safetensors.torch import save as to_bytes

from neuroscope.core.intervention import Intervention
from neuroscope.generation.content import Otherwise, content
from neuroscope.generation.model_content import part_content, pipeline_content, scorer
from neuroscope.metrics.metric import Loads, Metric
from neuroscope.metrics.shares import Share
from neuroscope.pipeline.graph import HookGraph


def origin(graph: HookGraph, generation: Mapping[str, Any]) -> str:
    """The hash of all that a model's images depend on beside prompt, seed and changes.

    Raises:
        InvalidInput: an option, or a part of the model, has no stable form.
    """
    options = {name: content(f"the option {name!r}", value) for name, value in generation.items()}
    return key_of(graph.model, pipeline_content(graph.pipe), options)


def fingerprint(graph: HookGraph) -> str:
    """A short hash of all that the pipeline's images depend on, by content, so that results of a changed model are told apart."""
    return pipeline_content(graph.pipe)[:16]


def key_of(*parts: Any) -> str:
    """A short hash of plain values."""
    return content("a key", list(parts))[:32]


def metric_key(metric: Metric | Share) -> str:
    """The hash of a metric: its class, what it holds, and the model that it loads.

    Raises:
        InvalidInput: a part of it has no stable form.
    """
    found = content(f"the metric {metric.name!r}", metric, scorer)
    if not isinstance(metric, Loads):
        return found
    return key_of(found, [part_content(name, part) for name, part in metric.loaded().items()])


def method_key(method: Any, otherwise: Otherwise = scorer) -> str:
    """The hash of a localisation method or a part of one: its class and those of its fields that its repr shows.

    Args:
        method: it.
        otherwise: what to do with parts that are no plain data; see `content`.

    Raises:
        InvalidInput: one of them has no stable form.
    """
    name = type(method).__name__
    names = [each.name for each in dataclasses.fields(method) if each.repr] if dataclasses.is_dataclass(method) else vars(method)
    return key_of(content(name, [type(method), {each: getattr(method, each) for each in names}], otherwise))


def digest(change: Sequence[Intervention], made_by: str) -> str:
    """The hash of interventions, with their tensors, and of where they are applied."""
    parts = []
    for each in change:
        tensors, header = each.to_parts()
        raw = to_bytes({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
        parts.append([content("an intervention", type(each), scorer), each.kind, header, raw])
    return key_of(made_by, parts)
