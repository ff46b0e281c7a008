"""`edit`, which applies an editing method to chosen layers of a model."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from neuroscope.core import checks
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.quality import Plan
from neuroscope.core.sites import BESIDE_LAYERS, Sites
from neuroscope.editing.loco_edit import LocoEdit
from neuroscope.editing.recorded_keys import KeyRuns
from neuroscope.generation.arguments import check_generation, refuse_set_here
from neuroscope.generation.dry_run import rows_of_run
from neuroscope.interventions import ContextMap
from neuroscope.pipeline.graph import HookGraph

#: What a model lacks that has no site of a role, and what to edit instead.
_LACKING = {
    "pooled": "pooled text path; edit keys and values alone",
    "context": "text that its blocks rewrite, so layers can be edited each for itself; edit keys and values",
}
_CALLED = {"pooled": "the pooled text path", "context": "the text before all blocks"}
_SET_HERE = ("prompt", "prompt_2", "prompt_3", "generator", "latents", "num_images_per_prompt", "output_type")


def edit(
    graph: HookGraph,
    concept: Concept | Collection[Concept],
    method: LocoEdit,
    layers: int | Collection[int] | None = None,
    *,
    seeds: Iterable[int] | None = None,
    quiet: bool = False,
    **generation: Any,
) -> ContextMap:
    """An edit that makes some layers read the concept's present prompts as its absent ones (or a fact's new answer).

    Nothing of the model is changed: apply the result, fold it, or export it.

    Args:
        graph: the model.
        concept: one, or several to be edited at once.
        method: such as `LocoEdit()`.
        layers: layer numbers, as `LayerScores.top` gives them. Leave them out where the method edits the pooled text path, or the text
            before all blocks, which belong to no layer.
        seeds: of the runs in which keys and values are recorded where blocks rewrite the text, by default 0 to 3. The last quarter of them,
            at least one, is held out to check the edit. Elsewhere nothing is run.
        quiet: show no progress bar, which is there after a second.
        **generation: passed to the pipeline in these runs, such as `num_inference_steps`.

    Raises:
        InvalidInput: no concept, no layer or one that the model lacks, layers, seeds or options that would be ignored, keys that the
            method cannot solve for, or recorded keys that the image moves too much for one map.
    """
    asked = _asked(graph, concept, method, layers, seeds, generation)
    if asked.sites.layers and graph.family.edit_reaches:
        warnings.warn(
            f"an edit of {graph.family.name} also moves {graph.family.edit_reaches}, so that images may change far more than asked; "
            "evaluate it, or give a mask or a swap instead",
            UserWarning,
            stacklevel=2,
        )
    return method(graph, asked.concepts, asked.sites, asked.runs, checks.flag("quiet", quiet))


def plan_edit(
    graph: HookGraph,
    concept: Concept | Collection[Concept],
    method: LocoEdit,
    layers: int | Collection[int] | None = None,
    *,
    seeds: Iterable[int] | None = None,
    **generation: Any,
) -> Plan:
    """What `edit` will cost: nothing, unless keys have to be recorded in runs. The arguments and errors are those of `edit`."""
    asked = _asked(graph, concept, method, layers, seeds, generation)
    if not graph.spec.read_in_runs & set(asked.sites.paths):
        return Plan(0, 0)
    images = asked.runs.count(asked.concepts, method.preserve)
    return Plan(images, images * rows_of_run(graph, asked.runs.generation, asked.concepts[0].present[0]))


class _Asked(NamedTuple):
    """What is edited where, and the runs in which keys are recorded."""

    concepts: list[Concept]
    sites: Sites
    runs: KeyRuns


def _asked(graph: Any, concept: Any, method: Any, layers: Any, seeds: Iterable[int] | None, generation: dict[str, Any]) -> _Asked:
    """Checks what a verb was given."""
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    concepts = checks.several("concept", concept, Concept, 'ns.Concept.style("Van Gogh")')
    checks.instance("method", method, LocoEdit, "ns.LocoEdit()")
    if not concepts:
        raise InvalidInput("there is no concept to edit; give at least one")
    sites = graph.sites.at([*_sites_of_layers(graph, method, layers), *_sites_beside(graph, method)])
    return _Asked(list(concepts), sites, _runs(graph, bool(graph.spec.read_in_runs & set(sites.paths)), seeds, generation))


def _runs(graph: HookGraph, recorded: bool, seeds: Iterable[int] | None, generation: dict[str, Any]) -> KeyRuns:
    """The runs in which keys are recorded; raises InvalidInput for options that would be ignored without any."""
    if recorded:
        refuse_set_here(generation, (*_SET_HERE, *graph.family.conditional_arguments))
        check_generation(graph.pipe, generation, edit)
        return KeyRuns(generation=generation) if seeds is None else KeyRuns(seeds=checks.seeds(seeds), generation=generation)
    for name in (*(["seeds"] if seeds is not None else []), *generation):
        raise InvalidInput(f"{name} would be ignored: what is edited depends on prompts alone, and nothing is run; leave it out")
    return KeyRuns()


def _sites_beside(graph: HookGraph, method: LocoEdit) -> list[str]:
    """The paths of the sites of no layer that are edited."""
    found: list[str] = []
    for role in [role for role in BESIDE_LAYERS if role in method.roles]:
        paths = graph.sites.where(role=role).paths
        if not paths:
            raise InvalidInput(f"{graph.family.name} has no {_LACKING[role]}")
        found += paths
    return found


def _sites_of_layers(graph: HookGraph, method: LocoEdit, layers: int | Collection[int] | None) -> tuple[str, ...]:
    """The paths of the sites that are edited in these layers; none where what belongs to no layer is edited alone."""
    chosen = () if layers is None else checks.layers("layers", layers)
    inside = set(method.roles) - set(BESIDE_LAYERS)
    if inside and "context" in method.roles:
        raise InvalidInput(
            "keys and values read the text that an edit of the context has moved already; edit the one or the other, such as "
            'LocoEdit(roles="context")'
        )
    if not inside:
        if chosen:
            named = " and ".join(_CALLED[role] for role in BESIDE_LAYERS if role in method.roles)
            raise InvalidInput(
                f"layers={checks.shown(layers)} would be ignored: {named}, which {method!r} edits alone, belongs to no layer; "
                "leave layers out, or edit keys and values too"
            )
        return ()
    if not chosen:
        raise InvalidInput("there are no layers to edit; give at least one, such as layers.top(1)")
    return graph.sites.where(layer=chosen, role=method.roles).paths
