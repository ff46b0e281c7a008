from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from neuroscope import (
    CausalTracing,
    Effects,
    HookGraph,
    ImageShare,
    InvalidFile,
    InvalidInput,
    LatentShare,
    LayerScores,
    Localization,
    LocoGen,
    Patch,
    localize,
)
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, Corner, concept_of, planted

SHARE = LatentShare()
CONCEPT = concept_of(STIPPLE)
FAST = SMALL | {"batch_size": 4, "quiet": True, "keep_images": 0}
LAYERS = 7
METHOD = LocoGen(window=4)  # four windows, so six images for each prompt and seed
PICTURES = 6


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    """A pipeline on which these prompts have a large effect, so that nothing warns."""
    return planted(STIPPLE, dict.fromkeys(range(LAYERS), STIPPLE), pipe=tiny.shallow())


@pytest.fixture(autouse=True)
def no_hook_is_left(graph):
    yield
    assert tiny.hooks(graph.pipe) == []


def run(graph: HookGraph, metric=SHARE, method=METHOD, concept=CONCEPT, **options):
    return localize(graph, concept, method, metric, **(FAST | {"seeds": [0], "pairs": 2} | options))


def rows_of(path) -> list[str]:
    """The lines of a ledger that hold scores."""
    return [line for line in path.read_text().splitlines(keepends=True) if '"scores"' in line]


def pictures_made(graph: HookGraph, *arguments, **options) -> float:
    """How many images a localisation makes, each in two steps without guidance."""
    with tiny.counted(graph.denoiser) as calls:
        run(graph, *arguments, **options)
    return sum(calls) / SMALL["num_inference_steps"]


@dataclass(frozen=True)
class Failing:
    """A metric that fails after some images."""

    after: int
    seen: list[int]

    name = "corner"

    def __call__(self, images, prompts) -> np.ndarray:
        self.seen.append(len(images))
        if sum(self.seen) > self.after:
            raise KeyboardInterrupt
        return Corner()(images, prompts)


class Listed(Localization):
    """A method that makes no image."""

    def __call__(self, experiment) -> LayerScores:
        nothing = torch.zeros(1, len(experiment.pairs), len(experiment.seeds), dtype=torch.float64)
        prompts = tuple(pair.present for pair in experiment.pairs)
        return LayerScores.of(Effects((Patch((0,)),), prompts, experiment.seeds, nothing, nothing[0]))


class TestWhatIsMeasured:
    def test_every_picture_is_scored_by_the_prompt_with_the_concept(self, graph):
        asked = []

        class Asking:
            name = "asking"

            def __call__(self, images, prompts):
                asked.extend(prompts)
                return Corner()(images, prompts)

        run(graph, Asking())
        assert sorted(asked) == sorted([STIPPLE[0][0], STIPPLE[2][0]] * PICTURES)

    def test_prompts_and_seeds_are_those_given(self, graph):
        scores = run(graph, seeds=iter([5, 3]), pairs=3, keep_images=1)
        assert scores.effects.seeds == (5, 3)
        assert scores.effects.values.shape == (4, 3, 2)
        alone = run(graph, seeds=[3], pairs=None, concept=concept_of(STIPPLE[:1]))
        torch.testing.assert_close(scores.effects.values[:, :1, 1:], alone.effects.values, rtol=0, atol=1e-4)
        assert not torch.allclose(scores.effects.values[:, 0, 0], scores.effects.values[:, 0, 1], atol=1e-3)

    @pytest.mark.parametrize(
        ("pairs", "expected"), [(None, range(12)), (12, range(12)), (40, range(12)), (4, (0, 3, 6, 9)), (5, (0, 2, 4, 7, 9)), (1, (0,))]
    )
    def test_pairs_are_evenly_spaced(self, graph, pairs, expected):
        every = [(f"{present} {number}", f"{absent} {number}") for number in range(3) for present, absent in STIPPLE]
        assert run(graph, method=Listed(), concept=concept_of(every), pairs=pairs).effects.prompts == tuple(
            every[number][0] for number in expected
        )

    def test_it_knows_where_it_comes_from(self, graph):
        scores = run(graph, seeds=[0], pairs=1)
        assert scores.provenance.concept == "stipple"
        assert (scores.provenance.family, scores.provenance.model) == (graph.family.name, graph.model)
        assert scores.provenance.method == f"{METHOD!r}, LatentShare()"
        assert scores.cost.seconds > 0


@pytest.fixture(scope="module")
def ledger(graph, tmp_path_factory) -> str:
    """What a finished run of one pair has written."""
    path = tmp_path_factory.mktemp("ledger") / "rows.jsonl"
    run(graph, Corner(), pairs=1, output=path)
    return path.read_text()


class TestResuming:
    @pytest.mark.parametrize(("metric", "keep"), [(Corner(), 1), (LatentShare(), 0), (LatentShare(), 1), (ImageShare(), 1)])
    def test_a_finished_run_costs_what_the_contact_sheet_needs(self, graph, tmp_path, metric, keep):
        options = {"output": tmp_path / "rows.jsonl", "keep_images": keep}
        first = run(graph, metric, **options)
        second = run(graph, metric, **options)
        again = keep * (PICTURES if isinstance(metric, Corner) else 8)  # what shares are measured against is made in whole batches of 4
        assert second.cost.nfe - first.cost.nfe == again * SMALL["num_inference_steps"]
        assert torch.equal(second.effects.values, first.effects.values)
        assert torch.equal(second.effects.total, first.effects.total)
        assert second.scores == first.scores
        assert len(second.images) == keep

    def test_a_stopped_run_goes_on_where_it_was(self, graph, tmp_path):
        """Of 24 images in batches of 4, the third batch is lost."""
        options = {"output": tmp_path / "rows.jsonl", "seeds": [0, 1]}
        with pytest.raises(KeyboardInterrupt), tiny.stopping(graph.denoiser, calls=2 * 2):
            run(graph, Corner(), **options)
        assert tiny.hooks(graph.pipe) == []
        assert len(rows_of(tmp_path / "rows.jsonl")) == 8
        with tiny.counted(graph.denoiser) as calls:
            resumed = run(graph, Corner(), **options)
        assert sum(calls) == (4 * PICTURES - 8) * 2
        assert torch.equal(resumed.effects.values, run(graph, Corner(), seeds=[0, 1]).effects.values)

    def test_a_stopped_run_of_shares_makes_again_only_the_ends_that_are_needed(self, graph, tmp_path):
        path = tmp_path / "rows.jsonl"
        first = run(graph, output=path, seeds=[0, 1])
        lines = rows_of(path)
        path.write_text("".join(lines[: 4 * 2 + 2 * 4 - 1]))  # of all ends and windows, a window of the second case and the last two cases
        assert pictures_made(graph, output=path, seeds=[0, 1]) == 4 * 2 + 1 + 2 * 4  # all ends, in whole batches, and what is missing
        again = run(graph, output=path, seeds=[0, 1])
        torch.testing.assert_close(again.effects.values, first.effects.values, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("width", [1, 2])
    def test_growing_windows_go_on_too(self, tmp_path, width):
        graph = planted(STIPPLE[:1], {12: STIPPLE, 13: STIPPLE, 14: STIPPLE}, louder=1)
        options = {"output": tmp_path / "rows.jsonl", "method": LocoGen(window="grow", enough=0.98), "pairs": 1, "batch_size": 64}
        run(graph, **options)
        lines = rows_of(options["output"])
        found = {1: 16 + 2, 2: 16 + 2 + 15}[width]
        assert len(lines) > found
        options["output"].write_text("".join(lines[:found]))
        assert pictures_made(graph, **options) == len(lines) - found + 2
        assert pictures_made(graph, **options) == 0

    @pytest.fixture
    def finished(self, ledger, tmp_path) -> dict:
        """The options of a finished run, with a copy of its file."""
        copy = tmp_path / "rows.jsonl"
        copy.write_text(ledger)
        return {"output": copy, "pairs": 1, "metric": Corner()}

    @pytest.mark.parametrize(
        "change",
        [
            {"metric": Corner(-1.0)},
            {"seeds": [1]},
            {"guidance_scale": 3.0},
            {"method": replace(METHOD, roles=("value",))},
            {"concept": concept_of(STIPPLE[1:])},
            {"concept": concept_of([(STIPPLE[0][0], STIPPLE[1][1])])},
        ],
        ids=["metric", "seed", "option", "method", "prompt", "absent prompt"],
    )
    def test_whatever_a_score_depends_on_makes_it_anew(self, graph, finished, change):
        halves = 2 if "guidance_scale" in change else 1
        assert pictures_made(graph, **(finished | change)) == PICTURES * halves

    def test_what_it_does_not_depend_on_does_not(self, graph, finished):
        assert pictures_made(graph, **(finished | {"batch_size": 3, "concept": concept_of(STIPPLE[:1]), "pairs": None})) == 0

    def test_another_corrupted_word_makes_it_anew(self, graph, tmp_path):
        """The prompts are the same, but a concept's name says what is corrupted in them."""
        options = {"output": tmp_path / "rows.jsonl", "pairs": 1, "method": CausalTracing(), "metric": Corner()}
        run(graph, **options)
        assert pictures_made(graph, **options) == 0
        assert pictures_made(graph, **(options | {"concept": concept_of(STIPPLE, "square")})) >= 2 + LAYERS

    @pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
    def test_other_weights_make_it_anew(self, graph, finished, part):
        weight = next(getattr(graph.pipe, part).parameters())
        before = weight.detach().clone()
        weight.data *= 1.01
        try:
            assert pictures_made(graph, **finished) == PICTURES
        finally:
            weight.data.copy_(before)

    def test_another_scheduler_makes_it_anew(self, graph, finished, monkeypatch):
        monkeypatch.setattr(graph.pipe, "scheduler", EulerDiscreteScheduler.from_config(graph.pipe.scheduler.config))
        assert pictures_made(graph, **finished) == PICTURES

    def test_a_place_that_cannot_be_written_is_refused_before_any_picture(self, graph, tmp_path):
        with (
            tiny.counted(graph.denoiser) as calls,
            pytest.raises(InvalidFile, match="none/rows.jsonl cannot be written: No such file or directory"),
        ):
            run(graph, output=tmp_path / "none" / "rows.jsonl")
        assert calls == []


class TestMemory:
    def test_a_run_that_does_not_fit_goes_on_in_smaller_batches(self, graph):
        expected = run(graph)

        def refuse(_module, args):
            if len(args[0]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

        handle = graph.denoiser.register_forward_pre_hook(refuse)
        try:
            with pytest.warns(UserWarning, match="out of memory; going on with 2 images at a time"):
                found = run(graph)
        finally:
            handle.remove()
        torch.testing.assert_close(found.effects.values, expected.effects.values, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, r"there are no seeds to localize with; give at least one, such as range\(4\)"),
        ({"seeds": [1, 2, 1]}, r"the seeds \(1, 2, 1\) are not all different; give each once"),
        ({"pairs": 0}, "pairs=0 leaves nothing to localize with; give 1 or more, or None for all 4"),
        ({"batch_size": 0}, "batch_size=0 is no number of images"),
        ({"generator": None}, "generator is set for each image here; give only options that all images share"),
    ],
)
def test_what_cannot_work_is_refused_before_any_picture(graph, options, message):
    with tiny.counted(graph.denoiser) as calls, pytest.raises(InvalidInput, match=message):
        run(graph, **options)
    assert calls == []


@pytest.mark.parametrize("method", [METHOD, CausalTracing(component="resnet"), CausalTracing(component="text")], ids=repr)
def test_after_an_exception_no_hook_is_left(graph, method):
    with pytest.raises(KeyboardInterrupt):
        run(graph, Failing(4, []), method)
    assert tiny.hooks(graph.pipe) == []
