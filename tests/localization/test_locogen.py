from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.stats
import torch
from diffusers import PNDMScheduler

from neuroscope import ContextSwap, HookGraph, ImageShare, InvalidInput, LatentShare, LayerScores, LocoGen, Patch, SiteNeverRan, localize
from tests.families import tiny
from tests.localization.planted import EMBLEM, SMALL, STIPPLE, Corner, concept_of, planted

SHARE = LatentShare()
LAYERS, DEEP = 7, 16  # of the shared pipeline, and of planted ones
PRESENT, ABSENT = STIPPLE[0]
FAST = {"seeds": [0], "batch_size": 64, "keep_images": 0, "quiet": True}


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return HookGraph(tiny.shallow())


def run(graph: HookGraph, method: LocoGen, pairs=STIPPLE[:1], metric=SHARE, **options) -> LayerScores:
    return localize(graph, concept_of(pairs), method, metric, **(SMALL | FAST | options))


def picture_of(graph: HookGraph, prompt: str, seed: int = 0, **options):
    (image,) = tiny.draw(graph.pipe, prompt, seed=seed, **(SMALL | {"output_type": "pil"} | options))
    return image


class Nearness:
    """How near images are to one image."""

    name = "nearness"

    def __init__(self, image) -> None:
        self._picture = np.asarray(image, dtype=float)

    def __call__(self, images, prompts) -> np.ndarray:
        return np.array([-np.abs(np.asarray(image, dtype=float) - self._picture).mean() for image in images])


class Readers:
    """Which layers' keys and values read a text: booleans of shape [call of the denoiser, layer, row]."""

    def __init__(self, context: torch.Tensor) -> None:
        self._context = context
        self._seen: dict[tuple[str, int], list[torch.Tensor]] = {}

    def see(self, role: str, layer: int, states: torch.Tensor) -> None:
        self._seen.setdefault((role, layer), []).append((states == self._context).flatten(1).all(dim=1))

    def of(self, role: str) -> torch.Tensor:
        return torch.stack([torch.stack(self._seen[role, layer]) for layer in range(LAYERS)], dim=1)


@contextmanager
def watched(graph: HookGraph, text: str) -> Iterator[Readers]:
    """Watches with plain forward hooks, which see what a module was really given."""
    readers = Readers(graph.text.encode([text]))
    handles = [
        graph.module(site).register_forward_hook(lambda _module, args, _out, site=site: readers.see(site.role, site.layer, args[0]))
        for site in graph.sites.where(text_only=True)
    ]
    yield readers
    for handle in handles:
        handle.remove()


def windows(width: int) -> np.ndarray:
    """Booleans [window, layer]: as many windows as fit, one after the other."""
    return np.array([[first <= layer < first + width for layer in range(LAYERS)] for first in range(LAYERS - width + 1)])


class TestWindows:
    @pytest.mark.parametrize("width", [1, 3, 6, 7])
    def test_each_has_its_width_and_together_they_reach_both_ends(self, graph, width):
        """One image a batch: the unchanged run, the total effect, and the windows in their order."""
        with watched(graph, ABSENT) as readers:
            scores = run(graph, LocoGen(window=width), batch_size=1, num_inference_steps=1)
        expected = np.concatenate([np.zeros((1, LAYERS)), np.ones((1, LAYERS)), windows(width)])
        for role in ("key", "value"):
            assert np.array_equal(readers.of(role)[:, :, 0], expected)
        assert scores.effects.patches == tuple(Patch(tuple(np.flatnonzero(each).tolist())) for each in windows(width))

    @pytest.mark.parametrize("roles", [("key",), ("value",), ("key", "value")])
    def test_only_the_roles_that_are_meant_read_the_other_prompt(self, graph, roles):
        with watched(graph, ABSENT) as readers:
            run(graph, LocoGen(roles=roles), batch_size=1, num_inference_steps=1)
        for role in ("key", "value"):
            assert np.array_equal(readers.of(role)[2:, :, 0], windows(1) if role in roles else 0 * windows(1))

    @pytest.mark.parametrize(("rows", "changed"), [("conditional", [False, True]), ("all", [True, True])])
    def test_with_guidance_only_the_rows_that_are_meant_read_it(self, graph, rows, changed):
        with watched(graph, ABSENT) as readers:
            run(graph, LocoGen(window=6, rows=rows), batch_size=1, num_inference_steps=1, guidance_scale=7.5)
        found = readers.of("value")[2:]
        for row, expected in enumerate(changed):
            assert np.array_equal(found[:, :, row], windows(6) * expected)

    def test_only_the_steps_that_are_meant_read_it(self, graph):
        with watched(graph, ABSENT) as readers:
            run(graph, LocoGen(window=7, steps=(0.25, 0.75)), batch_size=1, num_inference_steps=4)
        assert readers.of("value")[-4:, :, 0].all(dim=1).tolist() == [False, True, True, False]
        assert readers.of("value")[-4:, :, 0].any(dim=1).tolist() == [False, True, True, False]

    def test_several_windows_of_a_batch_are_the_same_as_one_at_a_time(self, graph):
        together, alone = (run(graph, LocoGen(), batch_size=size) for size in (64, 1))
        torch.testing.assert_close(together.effects.values, alone.effects.values, rtol=0, atol=1e-4)
        assert together.effects.values.max() > 0.1


@pytest.fixture(scope="module")
def blocked() -> HookGraph:
    """No layer lets the concept pass."""
    return planted(STIPPLE[:2], {})


@pytest.fixture(scope="module")
def spread() -> HookGraph:
    """The concept enters through three adjacent layers, so that wider windows hold more of it."""
    return planted(STIPPLE[:1], {12: STIPPLE, 13: STIPPLE, 14: STIPPLE}, louder=1)


@pytest.fixture(scope="module")
def by_width(spread) -> dict[int, LayerScores]:
    return {width: run(spread, LocoGen(window=width)) for width in (1, 2, 3)}


class TestGrowing:
    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_it_stops_at_the_first_width_with_enough_of_the_effect(self, spread, by_width, width):
        best = {each: float(scores.effects.means().max()) for each, scores in by_width.items()}
        assert best[1] < best[2] - 0.1 < best[3] - 0.2
        for enough in (best[width] - 0.01, best[width - 1] + 0.01 if width > 1 else 0.01):
            found = run(spread, LocoGen(window="grow", enough=enough))
            assert found.effects.patches == by_width[width].effects.patches
            torch.testing.assert_close(found.effects.values, by_width[width].effects.values, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("share", [True, False])
    def test_unchanged_runs_and_full_changes_are_made_once(self, spread, share):
        metric = LatentShare() if share else Nearness(picture_of(spread, ABSENT, guidance_scale=7.5))
        found = run(spread, LocoGen(window="grow", enough=0.98), metric=metric, guidance_scale=7.5, keep_images=1)
        widths = range(1, len(found.best.layers) + 1)
        assert len(widths) > 1
        assert found.cost.nfe == (2 + sum(DEEP - width + 1 for width in widths)) * 2 * 2
        assert found.columns == ("source", *map(str, found.effects.patches), "target")

    def test_it_says_how_wide_it_has_become(self, spread, by_width):
        found = run(spread, LocoGen(window="grow", enough=0.99))
        assert found.provenance.method.startswith("LocoGen(window=3, enough=0.99), ")
        assert found.best == Patch((12, 13, 14))

    def test_without_any_full_change_it_does_not_grow(self, blocked):
        with pytest.warns(UserWarning, match=r"the total effect hardly moves LatentShare\(\) \(0.000 on average\)"):
            found = run(blocked, LocoGen(window="grow"))
        assert len(found.effects.patches) == DEEP


class TestPlants:
    @pytest.mark.parametrize("layer", [1, 8, 13])
    def test_latents_move_wholly_by_the_planted_layer_and_by_no_other(self, layer):
        pairs = STIPPLE[:2]
        graph = planted(pairs, {layer: pairs})
        for width in (2, 1):
            scores = run(graph, LocoGen(window=width), pairs, seeds=[0, 1])
            holds = torch.tensor([layer in patch.layers for patch in scores.effects.patches]).double()
            torch.testing.assert_close(scores.effects.values, holds[:, None, None].expand(-1, 2, 2), rtol=0, atol=2e-3)
            assert layer in scores.best.layers
            assert scores.effects.total.tolist() == [[1, 1], [1, 1]]
        assert scores.verdict == f"all 2 prompts agree on layer {layer}"

    def test_so_do_pictures_with_guidance(self):
        pairs = STIPPLE[:2]
        scores = run(planted(pairs, {13: pairs}), LocoGen(window=2), pairs, ImageShare(), guidance_scale=7.5)
        holds = torch.tensor([13 in patch.layers for patch in scores.effects.patches]).double()
        torch.testing.assert_close(scores.effects.values[..., 0], holds[:, None].expand(-1, 2), rtol=0, atol=0.01)
        assert scores.top(1) == [13]
        assert scores.verdict == "all 2 prompts agree on layer 13"

    def test_a_place_that_depends_on_the_prompt_is_said_to(self):
        pairs = [*STIPPLE[:3], *EMBLEM[:3]]
        scores = run(planted(pairs, {1: STIPPLE, 13: EMBLEM}), LocoGen(), pairs)
        assert scores.by_prompt()["layer"].tolist() == [1, 1, 1, 13, 13, 13]
        np.testing.assert_allclose(scores.by_prompt()[["effect", "next_best"]], [[1, 0]] * 6, atol=1e-3)
        assert scores.verdict == "the 6 prompts disagree: layer 1 (3), layer 13 (3); the place depends on the prompt"
        np.testing.assert_allclose(scores.scores, [0.5 if layer in (1, 13) else 0 for layer in range(DEEP)], atol=1e-3)

    @pytest.mark.parametrize("metric", [LatentShare(), ImageShare(), Corner()], ids=repr)
    def test_where_nothing_passes_no_layer_is_found(self, blocked, metric):
        """Rounding errors alone are left, of which every layer would have a share; scores that are all 0 may be images of two prompts."""
        message = r"the total effect hardly moves .* \(-?0.000 on average\), so no layer can be found by it; choose another metric"
        with pytest.warns(UserWarning, match=message):
            scores = run(blocked, LocoGen(), STIPPLE[:2], metric)
        high = scipy.stats.binomtest(0, 2).proportion_ci().high if isinstance(metric, Corner) else 0.0
        assert scores.verdict == f"no layer stands out; the best, layer 0, has 0.00 [0.00, {high:.2f}]"
        assert scores.scores == (0.0,) * DEEP


class TestDirection:
    @pytest.mark.parametrize(("sign", "direction"), [(1.0, "necessity"), (-1.0, "necessity"), (1.0, "sufficiency")])
    def test_a_metric_may_fall_or_rise_under_the_total_effect(self, sign, direction):
        graph = planted(STIPPLE[:1], {13: STIPPLE[:1]})
        scores = run(graph, LocoGen(direction=direction), metric=Corner(sign), guidance_scale=7.5)
        present, absent = Corner()([picture_of(graph, text, guidance_scale=7.5) for text in STIPPLE[0]], STIPPLE[0])
        assert present - absent > 0.3
        assert scores.top(1) == [13]
        assert scores.scores[13] == pytest.approx(present - absent, abs=0.02)  # an image's levels are whole numbers
        assert float(scores.effects.total) == pytest.approx(present - absent, abs=0.02)

    def test_sufficiency_is_necessity_with_the_prompts_exchanged(self, graph):
        exchanged = [(absent, present) for present, absent in STIPPLE[:2]]
        there = run(graph, LocoGen(window=4, direction="sufficiency"), STIPPLE[:2], keep_images=1)
        back = run(graph, LocoGen(window=4), exchanged, keep_images=1)
        assert torch.equal(there.effects.values, back.effects.values)
        assert torch.equal(there.sheet, back.sheet)
        assert there.effects.prompts == tuple(present for present, _ in STIPPLE[:2])

    def test_sufficiency_is_another_question_than_necessity(self, graph):
        found = [run(graph, LocoGen(window=4, direction=direction)).effects.values for direction in ("necessity", "sufficiency")]
        assert not torch.allclose(*found, atol=0.01)


class TestParts:
    def test_each_part_reads_the_other_prompt_in_its_own_steps(self, graph):
        with watched(graph, ABSENT) as readers:
            scores = run(graph, LocoGen(window=7, parts=2), batch_size=1, num_inference_steps=4)
        assert scores.effects.patches == (Patch((*range(LAYERS),), "0-50 %"), Patch((*range(LAYERS),), "50-100 %"))
        by_step = readers.of("value")[8:, :, 0].reshape(2, 4, LAYERS)
        assert by_step.all(dim=2).tolist() == by_step.any(dim=2).tolist() == [[True, True, False, False], [False, False, True, True]]

    @pytest.mark.parametrize("parts", [2, 3])
    def test_each_is_a_swap_in_that_part_of_the_schedule_and_together_they_are_the_whole(self, graph, parts):
        options = SMALL | {"num_inference_steps": parts}
        scores = run(graph, LocoGen(window=7, parts=parts), num_inference_steps=parts)
        sites = graph.sites.where(text_only=True)
        swaps = [ContextSwap.of(graph, sites, ABSENT, steps=(part / parts, (part + 1) / parts)) for part in range(parts)]
        source, target = (tiny.draw(graph.pipe, text, **options) for text in (PRESENT, ABSENT))
        for swap, share in zip(swaps, scores.effects.means(), strict=True):
            with graph.apply(swap):
                moved = tiny.draw(graph.pipe, PRESENT, **options) - source
            way = target - source
            assert share == pytest.approx(float((moved * way).sum() / (way * way).sum()), abs=1e-4)
            assert 0.001 < share < 0.999
        with graph.apply(*swaps):
            assert torch.equal(tiny.draw(graph.pipe, PRESENT, **options), target)

    def test_more_parts_than_steps_are_an_error(self, graph):
        with pytest.raises(SiteNeverRan, match="no denoising step lies in the part of the schedule of .*; widen its steps or take more"):
            run(graph, LocoGen(window=7, parts=3), num_inference_steps=2)

    def test_they_divide_the_steps_that_are_meant(self, graph):
        with watched(graph, ABSENT) as readers:
            scores = run(graph, LocoGen(window=7, steps=(0.2, 0.8), parts=3), batch_size=1, num_inference_steps=5)
        assert [patch.part for patch in scores.effects.patches] == ["20-40 %", "40-60 %", "60-80 %"]
        assert readers.of("value")[10:, 0, 0].reshape(3, 5).int().argmax(dim=1).tolist() == [1, 2, 3]
        assert readers.of("value")[10:, 0, 0].sum() == 3

    def test_the_grid_has_a_column_a_part(self, graph):
        scores = run(graph, LocoGen(window=6, parts=2), num_inference_steps=2)
        grid = scores.grid()
        assert list(grid.columns) == ["0-50 %", "50-100 %"]
        means = scores.effects.means().reshape(2, 2)
        np.testing.assert_allclose(grid.loc[[0, 6]], means)
        np.testing.assert_allclose(grid.loc[3], means.mean(axis=0))


class TestCost:
    @pytest.mark.parametrize(("scale", "halves"), [(7.5, 2), (1.0, 1)])
    @pytest.mark.parametrize("width", [1, 5])
    def test_rows_are_two_more_than_windows_for_each_picture(self, graph, scale, halves, width):
        """The published algorithm makes the windows one after the other; only the run and its goal come on top."""
        found = run(graph, LocoGen(window=width), STIPPLE[:2], seeds=[0, 1, 2], num_inference_steps=2, guidance_scale=scale)
        pairs, seeds, steps, published = 2, 3, 2, LAYERS - width + 1
        assert found.cost.nfe == pairs * seeds * (published + 2) * steps * halves

    @pytest.mark.parametrize("batch_size", [1, 5, None])
    def test_the_batch_size_costs_nothing(self, graph, batch_size):
        assert run(graph, LocoGen(window=5), batch_size=batch_size, num_inference_steps=1).cost.nfe == 3 + 2

    def test_pndm_takes_a_call_more_than_steps(self, graph):
        scheduler = PNDMScheduler.from_config(graph.pipe.scheduler.config, skip_prk_steps=True)
        graph = HookGraph(tiny.with_parts(graph.pipe, scheduler=scheduler))
        found = run(graph, LocoGen(window=6), num_inference_steps=50, height=16, width=16)
        assert found.cost.nfe == (2 + 2) * 51


class TestContactSheet:
    @pytest.mark.parametrize("metric", [LatentShare(), Corner()], ids=repr)
    def test_it_shows_the_pipelines_own_pictures_of_the_first_seed(self, graph, metric):
        scores = run(graph, LocoGen(window=5), STIPPLE[:3], metric, keep_images=2, seeds=[7, 8], guidance_scale=7.5)
        assert scores.columns == ("source", "0-4", "1-5", "2-6", "target")
        assert list(scores.images) == [present for present, _ in STIPPLE[:2]]
        for (present, absent), row in zip(STIPPLE, scores.images.values(), strict=False):
            for number, found in enumerate(row):
                sites = graph.sites.where(layer=range(number - 1, number + 4)) if 0 < number < 4 else graph.sites[:0]
                swaps = [ContextSwap.of(graph, sites.where(text_only=True), absent)] if sites else []
                with graph.apply(*swaps):
                    image = picture_of(graph, absent if number == 4 else present, seed=7, guidance_scale=7.5)
                assert found.size == image.size == (32, 32)
                assert np.abs(np.asarray(found, dtype=int) - np.asarray(image, dtype=int)).max() <= 1
            assert len({each.tobytes() for each in row}) == 5

    def test_it_can_be_left_out(self, graph):
        scores = run(graph, LocoGen(window=6), keep_images=0, num_inference_steps=1)
        assert (scores.images, scores.columns, scores.sheet) == ({}, (), None)


def test_keys_and_values_alone_do_less_than_both(graph):
    whole, keys, values = (
        float(run(graph, LocoGen(window=7, roles=roles)).effects.values) for roles in (("key", "value"), ("key",), ("value",))
    )
    assert whole == pytest.approx(1, abs=1e-4)
    assert keys < 0.9 > values
    assert max(keys, values) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, 'window=0 is no number of layers; give 1 or more, or "grow"'),
        ({"window": "wide"}, "window='wide' is no number of layers"),
        ({"enough": 0.0}, "enough=0.0 is no share of the total effect; give more than 0 and at most 1"),
        ({"enough": 1.5}, "enough=1.5 is no share"),
        ({"roles": ()}, "roles is empty; give key, value or both"),
        ({"roles": ("values",)}, r"role 'values' is unknown; choose one of key, value; did you mean 'value'\?"),
        ({"direction": "necesity"}, r"direction 'necesity' is unknown; choose one of necessity, sufficiency; did you mean 'necessity'\?"),
        ({"rows": "al"}, r"rows 'al' is unknown; choose one of conditional, all; did you mean 'all'\?"),
        ({"steps": (0.5, 0.2)}, r"steps=\(0.5, 0.2\) is not a part of the schedule; give two fractions in order"),
        ({"parts": 0}, "parts=0 is no number of parts; give 1 or more"),
    ],
)
def test_an_impossible_option_is_refused(untyped, options, message):
    with pytest.raises(InvalidInput, match=message):
        LocoGen(**options)


def test_a_window_wider_than_the_model_is_refused_before_any_picture(graph):
    with (
        tiny.counted(graph.denoiser) as calls,
        pytest.raises(InvalidInput, match="window=17 is wider than the model's 7 layers; give 1 to 7"),
    ):
        run(graph, LocoGen(window=17))
    assert calls == []
