"""`edit`, which applies an editing method to chosen layers of a model."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from neuroscope.core import checks
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput
from neuroscope.editing.loco_edit import LocoEdit
from neuroscope.interventions import ContextMap
from neuroscope.pipeline.graph import HookGraph


def edit(
    graph: HookGraph,
    concept: Concept | Collection[Concept],
    method: LocoEdit,
    layers: int | Collection[int] | None = None,
    *,
    quiet: bool = False,
) -> ContextMap:
    """An edit that makes some layers read the concept's present prompts as its absent ones (or a fact's new answer).

    Nothing of the model is changed: apply the result, fold it, or export it.

    Args:
        graph: the model.
        concept: one, or several to be edited at once.
        method: such as `LocoEdit()`.
        layers: layer numbers, as `LayerScores.top` gives them. Leave them out where the method edits the pooled text path alone, which
            belongs to no layer.
        quiet: show no progress bar, which is there after a second.

    Raises:
        InvalidInput: no concept, no layer or one that the model lacks, layers that would be ignored, or keys that the method cannot
            solve for.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    concepts = checks.several("concept", concept, Concept, 'ns.Concept.style("Van Gogh")')
    checks.instance("method", method, LocoEdit, "ns.LocoEdit()")
    if not concepts:
        raise InvalidInput("there is no concept to edit; give at least one")
    inside = _sites_of_layers(graph, method, layers)
    if inside and graph.family.edit_reaches:
        warnings.warn(
            f"an edit of {graph.family.name} also moves {graph.family.edit_reaches}, so that images may change far more than asked; "
            "evaluate it, or give a mask or a swap instead",
            UserWarning,
            stacklevel=2,
        )
    beside = graph.sites.where(role="pooled").paths if "pooled" in method.roles else ()
    if "pooled" in method.roles and not beside:
        raise InvalidInput(f"{graph.family.name} has no pooled text path; edit keys and values alone")
    return method(graph, concepts, graph.sites.at([*inside, *beside]), checks.flag("quiet", quiet))


def _sites_of_layers(graph: HookGraph, method: LocoEdit, layers: int | Collection[int] | None) -> tuple[str, ...]:
    """The paths of the sites that are edited in these layers; none where the pooled text path alone is edited."""
    chosen = () if layers is None else checks.layers("layers", layers)
    if set(method.roles) == {"pooled"}:
        if chosen:
            raise InvalidInput(
                f"layers={checks.shown(layers)} would be ignored: the pooled text path, which {method!r} edits alone, belongs to no layer; "
                "leave layers out, or edit keys and values too"
            )
        return ()
    if not chosen:
        raise InvalidInput("there are no layers to edit; give at least one, such as layers.top(1)")
    return graph.sites.where(layer=chosen, role=method.roles).paths
