from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from neuroscope import HookGraph, InvalidInput, LatentShare, LayerScores, LocoGen, Racing, localize
from neuroscope.testbed import build
from neuroscope.testbed import planted as truth_of
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, concept_of, planted

LAYER, LAYERS, STEPS = 10, 16, 4
SEEDS = (0, 1)
FIRST = 2  # the images that a race begins with


def run(graph: HookGraph, method, pairs=STIPPLE, seeds=SEEDS, **options) -> LayerScores:
    given = SMALL | {"num_inference_steps": STEPS, "batch_size": 64, "keep_images": 0, "quiet": True} | options
    return localize(graph, concept_of(pairs), method, LatentShare(), seeds, **given)


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return planted(STIPPLE, {LAYER: STIPPLE})


@pytest.fixture(scope="module")
def exhaustive(graph) -> LayerScores:
    return run(graph, LocoGen())


@pytest.fixture(scope="module")
def raced(graph) -> tuple[LayerScores, list[int]]:
    """The scores, and the rows of every call of the denoiser."""
    with tiny.counted(graph.denoiser) as calls:
        return run(graph, Racing()), calls


class TestOneLayer:
    def test_it_wins(self, raced, exhaustive):
        scores, _ = raced
        assert scores.top(1) == exhaustive.top(1) == [LAYER]
        assert scores.best.layers == (LAYER,)
        assert np.abs(np.delete(scores.scores, LAYER)).max() < 1e-3

    def test_it_takes_less_than_a_third_of_the_sweeps_rows(self, raced, exhaustive):
        scores, calls = raced
        assert exhaustive.cost.nfe == (LAYERS + 2) * len(STIPPLE) * len(SEEDS) * STEPS
        assert sum(calls) == scores.cost.nfe < exhaustive.cost.nfe / 3

    def test_losers_leave_after_two_short_runs_and_the_winner_makes_two_whole_ones(self, raced):
        """Beside the run as it is and the total effect; a quarter of four steps is one."""
        _, calls = raced
        assert calls == [FIRST * (LAYERS + 2)] * 1 + [FIRST * (1 + 2)] * STEPS

    def test_its_effects_are_those_of_the_sweep_on_the_first_pictures(self, raced, exhaustive):
        """They are of prompts of their own; images that were not made are unknown."""
        found, exact = (scores.effects.values[scores.effects.patches.index(scores.best)] for scores in (raced[0], exhaustive))
        known = ~found.isnan()
        assert found[known].numpy() == pytest.approx(exact[known].numpy(), abs=1e-4)
        assert known.any(dim=1).sum() == known.sum() == FIRST

    def test_it_says_on_how_many_pictures_and_how_sure_it_is(self, raced):
        """Two prompts of four that agree may both be of one half, whichever half it is."""
        found = raced[0].confidence
        assert (found.measured_layers, found.measured_images, found.total_images) == ((LAYER,), FIRST, len(STIPPLE) * len(SEEDS))
        assert found.probability == pytest.approx(1 - 2 * (2 / 4) * (1 / 3))
        assert str(found) in raced[0].verdict


def test_its_contact_sheet_shows_the_prompts_that_were_drawn_first(graph, exhaustive):
    """With the images that the sweep makes of these prompts and seeds."""
    scores, every = (run(graph, method, keep_images=4, seeds=[7], num_inference_steps=1) for method in (Racing(seed=1), LocoGen()))
    known = ~scores.effects.values[scores.effects.patches.index(scores.best)].isnan().any(dim=1)
    drawn = {prompt for prompt, made in zip(scores.effects.prompts, known, strict=True) if made}
    assert set(scores.images) == drawn
    assert len(drawn) == FIRST
    for prompt, row in scores.images.items():
        assert np.array_equal(np.asarray(row[0]), np.asarray(every.images[prompt][0]))


@pytest.fixture(scope="module")
def close() -> HookGraph:
    """Two layers carry half each: which is ahead depends on the image."""
    return HookGraph(tiny.exact(build("sd1", "apart", 1)))


def run_built(graph: HookGraph, method) -> LayerScores:
    truth = truth_of(graph.pipe)
    return localize(graph, truth.concept, method, LatentShare(), SEEDS, quiet=True, keep_images=0, **truth.generation)


class TestACloseSecond:
    def test_it_is_not_dropped_while_the_two_cannot_be_told_apart(self, close):
        layers = truth_of(close.pipe).layers
        exact = run_built(close, LocoGen())
        first, second = (exact.effects.values[layer].flatten() for layer in layers)
        assert 0 < (first > second).sum() < len(first)
        found = run_built(close, Racing(step_fraction=0.5))
        assert found.confidence.measured_layers == layers
        assert (found.confidence.measured_images, found.confidence.total_images) == (8, 8)
        assert found.top(1) == exact.top(1)
        assert [found.scores[layer] for layer in layers] == pytest.approx([exact.scores[layer] for layer in layers], abs=1e-3)

    def test_others_drop_out_before_the_pictures_end(self, close):
        found = run_built(close, Racing(step_fraction=0.5))
        others = [patch.layers[0] not in found.confidence.measured_layers for patch in found.effects.patches]
        assert sum(others) == LAYERS - 2
        assert (~found.effects.values[others].isnan()).flatten(1).sum(dim=1).max() <= found.confidence.total_images / 2


class TestShortRuns:
    @pytest.mark.parametrize(("short", "steps", "shortened"), [(0.5, 2, 1), (0.3, 5, 2), (0.1, 3, 1), (1.0, 2, 2)])
    def test_they_take_a_rounded_share_of_the_steps_and_at_least_one(self, graph, short, steps, shortened):
        with tiny.counted(graph.denoiser) as calls:
            run(graph, Racing(step_fraction=short), STIPPLE[:2], [0], num_inference_steps=steps)
        assert calls == [FIRST * (LAYERS + 2)] * shortened + [FIRST * (1 + 2)] * steps

    def test_without_a_number_of_steps_they_take_their_share_of_the_pipelines_own(self, graph):
        class Quick(StableDiffusionPipeline):
            def __call__(self, *args: Any, num_inference_steps: int = 6, **options: Any) -> Any:
                return super().__call__(*args, num_inference_steps=num_inference_steps, **options)

        quick = Quick(**graph.pipe.components, requires_safety_checker=False)
        quick.set_progress_bar_config(disable=True)
        options = {name: value for name, value in SMALL.items() if name != "num_inference_steps"}
        with tiny.counted(quick.unet) as calls:
            localize(
                HookGraph(quick),
                concept_of(STIPPLE[:2]),
                Racing(step_fraction=0.5),
                LatentShare(),
                [0],
                batch_size=64,
                quiet=True,
                **options,
            )
        assert calls == [FIRST * (LAYERS + 2)] * 3 + [FIRST * (1 + 2)] * 6


def test_where_nothing_passes_nobody_wins():
    graph = planted(STIPPLE[:2], {})
    with pytest.warns(UserWarning, match="the total effect hardly moves LatentShare"):
        found = run(graph, Racing(), STIPPLE[:2], [0])
    assert set(found.scores) == {0.0}
    assert found.verdict.startswith("no layer stands out")
    assert found.confidence.probability <= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": 0.0}, "error=0.0 is no chance; give more than 0 and less than 1, such as 0.05"),
        ({"error": 1.0}, "error=1.0 is no chance; give more than 0 and less than 1, such as 0.05"),
        ({"step_fraction": 0.0}, "step_fraction=0.0 is no share of the steps; give more than 0 and at most 1"),
        ({"step_fraction": 1.5}, "step_fraction=1.5 is no share of the steps; give more than 0 and at most 1"),
        ({"finalists": 0}, "finalists=0 lets no layer win; give 1 or more"),
        ({"roles": ()}, "roles is empty; give key, value or both"),
        ({"roles": "query"}, "role 'query' is unknown; choose one of key, value"),
        ({"direction": "necesity"}, r"direction 'necesity' is unknown; choose one of necessity, sufficiency; did you mean 'necessity'\?"),
    ],
)
def test_an_impossible_option_is_refused(untyped, options, message):
    with pytest.raises(InvalidInput, match=message):
        Racing(**options)


def test_a_schedule_that_cannot_be_shortened_is_refused_before_any_picture(graph):
    with (
        tiny.counted(graph.denoiser) as calls,
        pytest.raises(InvalidInput, match="a schedule given by timesteps cannot be shortened"),
    ):
        run(graph, Racing(), STIPPLE[:1], [0], timesteps=[900, 500, 100])
    assert calls == []


@pytest.fixture(scope="module")
def apart() -> HookGraph:
    """Two layers that are about as strong."""
    return HookGraph(tiny.exact(build("sd1", "apart", 1)))


def raced_with(graph: HookGraph, **options) -> LayerScores:
    truth = truth_of(graph.pipe)
    return localize(graph, truth.concept, Racing(**options), LatentShare(), [0], keep_images=0, quiet=True, **truth.generation)


def test_short_runs_alone_make_nobody_sure(apart):
    assert raced_with(apart, finalists=1, error=1e-9).confidence.probability <= 0.9
    assert raced_with(apart, finalists=16, error=1e-9).confidence.probability > 0.99


def test_the_winner_of_the_second_race_is_on_top_whatever_losers_had_in_short_runs(apart):
    scores = raced_with(apart, finalists=1)
    assert scores.top(1) == list(scores.confidence.measured_layers)
