"""Ways of choosing layers where blocks rewrite the text: each measures what a swap by itself does, and stops where it says."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from neuroscope import Concept, HookGraph, LatentShare, LayerScores, LocoGen, localize
from tests.families.test_joint import FAMILIES, UNGUIDED, built, drawn, swap
from tests.families.tiny import OTHER, PROMPT
from tests.localization.test_causal_tracing import share_of

CONCEPT = Concept("plain", [PROMPT], [OTHER])
SMALL = {"num_inference_steps": 2, "height": 32, "width": 32}


def found(graph: HookGraph, family: str, **options: Any) -> LayerScores:
    return localize(graph, CONCEPT, LocoGen(**options), LatentShare(), [0], quiet=True, keep_images=0, **SMALL, **UNGUIDED[family])


def share(graph: HookGraph, family: str, layers: Sequence[int], ends: tuple[str, str] = (PROMPT, OTHER), **options: Any) -> float:
    """The share of the total effect of a swap of some layers alone, whose text comes from the other prompt's own run."""
    run = partial(drawn, graph, **UNGUIDED[family])
    source, target = (run(each)[0] for each in ends)
    with graph.apply_each([[], [swap(graph, layers, prompt=ends[1], **options)]], donors=[None, 0]):
        patched: Tensor = run(ends[1], ends[0])[1]
    return share_of(patched, source, target)


def means(scores: LayerScores) -> dict[Any, float]:
    """By layers and part of the schedule, the mean effects as shares of the total effect."""
    assert scores.effects is not None
    values = scores.effects.means() / scores.effects.total_mean()
    return {(patch.layers, patch.part): float(value) for patch, value in zip(scores.effects.patches, values, strict=True) if patch.layers}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_and_the_pooled_text_are_the_total_effect(family):
    graph = built(family)
    (score,) = means(found(graph, family, window=len(graph.sites.layers), pooled="other")).values()
    assert score == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("definition", ["edge", "stream"])
def test_a_window_of_two_blocks_is_a_swap_of_both(family, definition):
    graph = built(family)
    for (layers, _), score in means(found(graph, family, window=2, definition=definition)).items():
        assert len(layers) == 2
        assert score == pytest.approx(share(graph, family, layers, definition=definition), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grid_of_parts_is_swaps_of_one_layer_in_a_part_of_the_schedule(family):
    graph = built(family)
    grid = means(found(graph, family, parts=2))
    assert len(grid) == 2 * len(graph.sites.layers)
    by_part = dict(zip(dict.fromkeys(part for _, part in grid), [(0.0, 0.5), (0.5, 1.0)], strict=True))
    for (layers, part), score in grid.items():
        assert score == pytest.approx(share(graph, family, layers, steps=by_part[part]), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_sufficiency_is_a_swap_in_the_other_prompt_s_run(family):
    graph = built(family)
    for (layers, _), score in means(found(graph, family, direction="sufficiency")).items():
        assert score == pytest.approx(share(graph, family, layers, ends=(OTHER, PROMPT)), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_growing_windows_stop_at_the_first_width_at_which_one_is_enough(family):
    graph = built(family)
    best = {width: max(means(found(graph, family, window=width)).values()) for width in range(1, len(graph.sites.layers) + 1)}
    whole = max(best.values())
    assert whole > best[1]
    for enough in (0.9 * best[1], (best[1] + whole) / 2):
        grown = means(found(graph, family, window="grow", enough=enough))
        (width,) = {len(layers) for layers, _ in grown}
        assert width == next(each for each, score in best.items() if score >= enough)


@pytest.mark.parametrize("family", FAMILIES)
def test_smallest_sets_are_enough_and_none_of_their_layers_can_be_left_out(family):
    graph = built(family)
    enough = 0.7 * share(graph, family, graph.sites.layers)
    scores = found(graph, family, search="sets", enough=enough)
    sets = means(scores)
    (layers, _), score = max(sets.items(), key=lambda each: each[1])
    assert score >= enough
    assert score == pytest.approx(share(graph, family, layers), abs=1e-6)
    assert all(share(graph, family, [each for each in layers if each != left]) < enough for left in layers if len(layers) > 1)
    assert np.isfinite(scores.scores).all()
