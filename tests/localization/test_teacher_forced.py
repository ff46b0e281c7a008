import numpy as np
import pytest
import torch

from neuroscope import ContextSwap, HookGraph, InvalidInput, LatentShare, LayerScores, LocoGen, TeacherForced, localize
from neuroscope.report import plots
from neuroscope.testbed import build, planted
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, concept_of
from tests.localization.planted import planted as planted_by_hand

FAST = {"seeds": [0], "keep_images": 0, "quiet": True}


def run(graph: HookGraph, method: TeacherForced, **options) -> LayerScores:
    return localize(graph, concept_of(STIPPLE[:1]), method, LatentShare(), **(FAST | SMALL | options))


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return HookGraph(tiny.sd1())


def test_shares_are_projections_of_changed_predictions(graph):
    """Again by hand: one run with a plain hook, then one call of the denoiser for every change, one after the other."""
    scores = run(graph, TeacherForced(steps=1, fidelity=0), num_inference_steps=3)
    present, absent = STIPPLE[0]
    seen = []
    handle = graph.denoiser.register_forward_hook(lambda _module, args, kwargs, output: seen.append((args, kwargs)), with_kwargs=True)
    tiny.draw(graph.pipe, present, **(SMALL | {"num_inference_steps": 3}))
    handle.remove()
    (sample, timestep), inputs = seen[1][0], seen[1][1]

    def predicted(layers) -> torch.Tensor:
        swap = ContextSwap.of(graph, graph.sites.where(layer=layers, text_only=True), absent, rows="all")
        with torch.no_grad(), graph.apply(swap):
            return graph.denoiser(sample, timestep, encoder_hidden_states=inputs["encoder_hidden_states"])[0].double()

    with torch.no_grad():
        source = graph.denoiser(sample, timestep, encoder_hidden_states=inputs["encoder_hidden_states"])[0].double()
    way = (predicted(graph.sites.layers) - source).flatten()
    expected = [float((predicted(layer) - source).flatten() @ way / (way @ way)) for layer in graph.sites.layers]
    np.testing.assert_allclose(scores.scores, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "if-1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd2", "sdxl", "if-2"))])
def test_the_planted_layer_has_the_whole_share_at_every_step_and_others_none(family):
    graph = HookGraph(tiny.exact(build(family, "layer", 0)))
    truth = planted(graph.pipe)
    scores = localize(graph, truth.concept, TeacherForced(steps=2, fidelity=0), LatentShare(), **(FAST | truth.generation | {"pairs": 1}))
    grid = scores.grid()
    expected = np.isin(grid.index, truth.layers).astype(float)[:, None].repeat(2, axis=1)
    np.testing.assert_allclose(grid.to_numpy(), expected, atol=2e-3)
    assert plots.grid(scores).get_xlabel() == "layer"


@pytest.mark.parametrize(("family", "steps"), [("sd1", 3), ("sdxl", 1)])
def test_the_heatmap_takes_one_and_a_half_generations_at_most(family, steps):
    """As images are made: 50 steps with guidance, each of two rows."""
    graph = HookGraph(tiny.PIPELINES[family]())
    options = {"num_inference_steps": 50, "guidance_scale": 7.5}
    scores = run(graph, TeacherForced(steps=steps, fidelity=0), **options)
    assert scores.cost.nfe <= 1.5 * 50 * 2
    assert len(scores.effects.patches) == steps * len(graph.sites.layers)


def test_it_sees_what_the_schedules_part_hides():
    """A layer that counts in a part of the schedule alone shows in predictions at all steps, and in images there only."""
    graph = HookGraph(tiny.exact(build("sd1", "schedule", 0)))
    truth = planted(graph.pipe)
    (layer,) = truth.layers
    options = FAST | truth.generation | {"pairs": 1}
    forced = localize(graph, truth.concept, TeacherForced(steps=5, fidelity=0), LatentShare(), **options).grid().loc[layer]
    assert (forced > 0.9).all()
    images = localize(graph, truth.concept, LocoGen(parts=5), LatentShare(), **options).grid().loc[layer]
    assert (images < 0.1).sum() == 3


def test_where_the_other_prompt_changes_nothing_it_says_nothing(graph):
    same = planted_by_hand(STIPPLE[:1], {})
    scores = run(same, TeacherForced(steps=1, fidelity=0))
    assert scores.effects.values.isnan().all()
    assert "no layer stands out" in scores.verdict


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 looks at no step of the schedule; give 1 or more"),
        ({"fidelity": 2}, "fidelity=2 is too few layers for a rank correlation; give at least 3, or 0 to leave it out"),
        ({"roles": ()}, "roles is empty; give key, value or both"),
        ({"roles": "query"}, "role 'query' is unknown; choose one of key, value"),
        ({"direction": "both"}, "direction 'both' is unknown; choose one of necessity, sufficiency"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message, untyped):
    with pytest.raises(InvalidInput, match=message):
        TeacherForced(**options)
