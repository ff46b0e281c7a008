"""What every metric must satisfy. A new metric needs one line in SCORERS or SHARES."""

import ast
import math
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch
from PIL.Image import Image, fromarray

from neuroscope import ClapScore, ClipScore, Flipped, HookGraph, ImageShare, LatentShare, Metric
from neuroscope.metrics.metric import bind
from neuroscope.metrics.shares import Share
from neuroscope.testbed.readers import Reader
from neuroscope.testbed.world import Scene, render
from tests.laws.members import methods_in

PROMPTS = ["a red circle", "a red star in the style of hatch", "a blue star"]
#: Metrics of images and prompts, with the range of their scores.
SCORERS: dict[type, tuple[Metric, float, float]] = {
    ClipScore: (ClipScore("hatch", model="testbed:clip"), -1.0, 1.0),
    Reader: (Reader("colour", "red"), 0.0, 1.0),
}
#: Metrics of a run between its source and its target.
SHARES: dict[type, Share] = {Flipped: Flipped(0.4), ImageShare: ImageShare(), LatentShare: LatentShare()}
#: Metrics of sounds, whose laws are in tests/test_sounds.py.
OF_SOUNDS = {ClapScore}
EVERY = [*(metric for metric, _, _ in SCORERS.values()), *SHARES.values()]


@pytest.fixture(scope="module")
def images() -> list[Image]:
    return [render(Scene("circle", "red")), render(Scene("star", "red", "hatch")), render(Scene("star", "blue"))]


def test_every_metric_has_an_example():
    assert methods_in("metrics") == sorted({*SCORERS, *SHARES, *OF_SOUNDS} - {Reader}, key=lambda each: each.__name__)
    assert Reader in methods_in("testbed")


@pytest.mark.parametrize("metric", EVERY, ids=repr)
class TestEveryMetric:
    def test_its_repr_makes_it_again(self, metric):
        call = ast.parse(repr(metric), mode="eval").body
        assert type(metric)(**{each.arg: ast.literal_eval(each.value) for each in call.keywords}) == metric
        assert len({hash(metric), hash(type(metric)(**{each.name: getattr(metric, each.name) for each in fields(metric)}))}) == 1

    def test_it_has_a_name_and_cannot_be_changed_once_made(self, metric):
        assert metric.name
        with pytest.raises(FrozenInstanceError):
            metric.name = "another"

    def test_binding_twice_is_binding_once(self, metric, pipe):
        graph = HookGraph(pipe)
        bound = bind(metric, graph)
        assert type(bound) is type(metric)
        assert bind(bound, graph) == bound


@pytest.mark.parametrize(("metric", "low", "high"), SCORERS.values(), ids=[each.__name__ for each in SCORERS])
class TestEveryScorer:
    def test_there_is_one_number_for_each_image_within_the_range(self, metric, low, high, images):
        scores = metric(images, PROMPTS)
        assert scores.shape == (len(images),)
        assert scores.dtype == np.float64
        assert ((scores >= low) & (scores <= high)).all()

    def test_the_order_of_images_and_their_batch_do_not_matter(self, metric, low, high, images):
        scores = metric(images, PROMPTS)
        np.testing.assert_allclose(metric(images[::-1], PROMPTS[::-1])[::-1], scores, atol=1e-5)
        alone = [metric([image], [prompt])[0] for image, prompt in zip(images, PROMPTS, strict=True)]
        np.testing.assert_allclose(alone, scores, atol=1e-5)

    def test_the_same_images_give_the_same_scores_to_the_bit(self, metric, low, high, images):
        assert np.array_equal(metric(images, PROMPTS), metric(images, PROMPTS))


def run_of(metric: Share, values: np.ndarray) -> Image | torch.Tensor:
    """A run in the metric's space."""
    return torch.from_numpy(values) if metric.space == "latent" else fromarray(values.round().astype(np.uint8))


@pytest.fixture
def ends() -> tuple[np.ndarray, np.ndarray]:
    """A source and a target whose halves are whole numbers."""
    source, change = np.random.default_rng(0).integers(0, 60, (2, 8, 8, 3))
    return source.astype(np.float64), (source + 2 * change + 2).astype(np.float64)


@pytest.mark.parametrize("metric", SHARES.values(), ids=repr)
class TestEveryShare:
    def test_it_is_0_at_the_source_and_1_at_the_target(self, metric, ends):
        source, target = (run_of(metric, each) for each in ends)
        assert metric(source, source, target) == pytest.approx(0)
        assert metric(target, source, target) == pytest.approx(1)

    def test_it_never_falls_on_the_way_from_source_to_target(self, metric, ends):
        source, target = ends
        shares = [metric(*(run_of(metric, each) for each in (source + part * (target - source), *ends))) for part in (0, 0.5, 1)]
        assert shares == sorted(shares)
        assert all(0 <= share <= 1 + 1e-9 for share in shares)

    def test_without_a_total_effect_it_is_unknown(self, metric, ends):
        source, target = (run_of(metric, each) for each in ends)
        assert math.isnan(metric(target, source, source))

    def test_the_positions_of_an_image_may_change_places_in_all_runs(self, metric, ends):
        runs = [(ends[0] + ends[1]) / 2, *ends]
        turned = metric(*(run_of(metric, each[::-1].copy()) for each in runs))
        assert turned == pytest.approx(metric(*(run_of(metric, each) for each in runs)))
