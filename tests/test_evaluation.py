import itertools
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from neuroscope import (
    ContextSwap,
    HookGraph,
    InvalidFile,
    InvalidInput,
    LatentShare,
    NeuronMask,
    Neurons,
    UnknownSite,
    evaluate,
    generate,
    random_control,
    summarize,
)
from tests.families import tiny

PROMPTS = ["a red circle", "a blue star in the style of hatch"]
SEEDS = [3, 4]
ONE_LEVEL = 1.0  # images have 256 levels, and the batch size may round one up


@dataclass(frozen=True)
class Brightness:
    """The mean of an image's corner: it depends on every pixel's place, so that images are told apart."""

    name: str = "brightness"

    def __call__(self, images, prompts):
        return np.array([np.asarray(image, dtype=float)[:32, :32].mean() for image in images])


@dataclass(frozen=True)
class Letters:
    name: str = "letters"

    def __call__(self, images, prompts):
        return np.array([float(len(prompt)) for prompt in prompts])


@pytest.fixture(scope="module")
def mask(graph) -> NeuronMask:
    widths = {site.path: site.width for site in graph.sites.where(layer=[3, 8, 9], role="value")}
    return NeuronMask(Neurons({path: range(0, 20, 2) for path in widths}, widths), fill=3.0)


def run(graph, changes, **options) -> pd.DataFrame:
    defaults = {"prompts": PROMPTS, "seeds": SEEDS, "metrics": [Brightness()], "quiet": True, "num_inference_steps": 2}
    return evaluate(graph, changes, **(defaults | options))


def test_each_score_is_that_of_its_own_picture(graph, pipe, mask):
    table = run(graph, {"mask": mask, "both": [mask, mask]}, metrics=[Brightness(), Letters()], controls=False)
    assert list(table.columns) == ["intervention", "prompt", "seed", "metric", "score"]
    rows = itertools.product(["mask", "both"], PROMPTS, SEEDS, ["brightness", "letters"])
    assert list(table.drop(columns="score").itertuples(index=False, name=None)) == list(rows)
    for row in table[table["intervention"] == "mask"].itertuples():
        with graph.apply(mask):
            image = tiny.draw(pipe, row.prompt, seed=row.seed, output_type="pil")
        metric = Brightness() if row.metric == "brightness" else Letters()
        assert row.score == pytest.approx(metric(image, [row.prompt])[0], abs=ONE_LEVEL)


def test_none_and_a_random_control_are_added(graph, pipe, mask):
    swap = ContextSwap.of(graph, graph.sites.where(text_only=True), "a blue star")  # which no rounding to 256 levels hides
    table = run(graph, {"mask": mask, "swap": swap, "mask and swap": (mask, swap)})
    names = ["none", "mask", "mask: random", "swap", "mask and swap", "mask and swap: random"]
    assert list(table["intervention"].unique()) == names
    means = table.groupby("intervention")["score"].mean()
    untouched = tiny.draw(pipe, PROMPTS[0], seed=SEEDS[0], output_type="pil")
    assert table["score"][0] == pytest.approx(Brightness()(untouched, [""])[0], abs=ONE_LEVEL)
    assert means.nunique() == len(names)


class TestRandomControl:
    def test_it_is_as_many_other_neurons_of_the_same_sites(self, mask):
        control = random_control(mask)
        assert {path: len(chosen) for path, chosen in control.neurons.items()} == {
            path: len(chosen) for path, chosen in mask.neurons.items()
        }
        assert (control.neurons & mask.neurons).count == 0
        assert all(set(control.fill[path].tolist()) == {3.0} for path in control.paths)

    def test_it_depends_on_its_seed_alone(self, mask):
        assert random_control(mask, 1).neurons == random_control(mask, 1).neurons
        assert random_control(mask, 1).neurons != random_control(mask, 2).neurons

    def test_it_keeps_the_masks_options_and_each_sites_fills(self, mask):
        path = next(iter(mask.neurons))
        original = NeuronMask(
            Neurons({path: [1, 5, 9]}, mask.neurons.widths),
            fill={path: torch.tensor([1.0, 2.0, 3.0])},
            strength=0.5,
            rows="all",
            steps=(0.0, 0.5),
        )
        control = random_control(original)
        assert (control.strength, control.rows, control.steps) == (0.5, "all", (0.0, 0.5))
        assert sorted(control.fill[path].tolist()) == [1.0, 2.0, 3.0]

    def test_where_a_site_is_too_small_it_takes_all_others_first(self, mask):
        path = next(iter(mask.neurons))
        width = mask.neurons.widths[path]
        most = NeuronMask(Neurons({path: range(width - 3)}, {path: width}))
        control = random_control(most)
        assert control.neurons.count == width - 3
        assert set(control.neurons[path]) > {width - 3, width - 2, width - 1}


class TestResuming:
    def test_a_second_run_makes_no_picture(self, graph, pipe, mask, tmp_path):
        first = run(graph, {"mask": mask}, output=tmp_path / "rows.jsonl")
        with tiny.counted(pipe.unet) as calls:
            second = run(graph, {"mask": mask}, output=tmp_path / "rows.jsonl", batch_size=3)
        assert calls == []
        pd.testing.assert_frame_equal(first, second)

    def test_a_stopped_run_goes_on_where_it_was(self, graph, pipe, mask, tmp_path):
        options = {"controls": False, "batch_size": 1, "output": tmp_path / "rows.jsonl"}
        with pytest.raises(KeyboardInterrupt), tiny.stopping(pipe.unet, calls=3 * 2):
            run(graph, {"mask": mask}, **options)
        with tiny.counted(pipe.unet) as calls:
            table = run(graph, {"mask": mask}, **options)
        assert len(calls) == 2  # one image of two steps
        pd.testing.assert_frame_equal(table, run(graph, {"mask": mask}, controls=False, batch_size=1))

    def test_a_line_that_was_cut_short_costs_one_picture_once(self, graph, pipe, mask, tmp_path):
        file = tmp_path / "rows.jsonl"
        options = {"controls": False, "batch_size": 1, "output": file}
        first = run(graph, {"mask": mask}, **options)
        file.write_text(file.read_text()[:-20])
        with tiny.counted(pipe.unet) as calls, pytest.warns(UserWarning, match="its last line was cut short, as when a run is killed"):
            pd.testing.assert_frame_equal(run(graph, {"mask": mask}, **options), first)
        assert len(calls) == 2
        with tiny.counted(pipe.unet) as calls:
            pd.testing.assert_frame_equal(run(graph, {"mask": mask}, **options), first)
        assert calls == []

    def test_a_file_of_another_program_is_refused_and_stays_as_it_is(self, graph, pipe, tmp_path):
        file = tmp_path / "rows.jsonl"
        file.write_text('{"other": 1}\n[1, 2]\nnot json\n\n')
        with (
            tiny.counted(pipe.unet) as calls,
            pytest.raises(InvalidFile, match="rows.jsonl is no ledger, none of its lines is a row of one"),
        ):
            run(graph, {"none": None}, output=file)
        assert calls == []
        assert file.read_text() == '{"other": 1}\n[1, 2]\nnot json\n\n'

    @pytest.mark.parametrize(
        "change", [{"prompts": ["a cyan ring"]}, {"seeds": [5]}, {"guidance_scale": 3.0}, {"metrics": [Letters()]}, {"mask": 0.5}]
    )
    def test_whatever_a_picture_or_score_depends_on_makes_it_anew(self, graph, pipe, mask, tmp_path, change):
        file = tmp_path / "rows.jsonl"
        options = {"controls": False, "output": file, "prompts": PROMPTS[:1], "seeds": [3], "num_inference_steps": 1}
        run(graph, {"mask": mask}, **options)
        strength = change.pop("mask", 1.0)
        with tiny.counted(pipe.unet) as calls:
            run(graph, {"mask": NeuronMask(mask.neurons, mask.fill, strength)}, **(options | change))
        assert len(calls) == 1

    def test_other_weights_make_it_anew(self, graph, fresh, mask, tmp_path):
        options = {"controls": False, "output": tmp_path / "rows.jsonl", "num_inference_steps": 1}
        run(graph, {"mask": mask}, **options)
        with torch.no_grad():
            fresh.unet.conv_in.weight.mul_(1.1)
        other = HookGraph(fresh)
        with tiny.counted(fresh.unet) as calls:
            run(other, {"mask": mask}, **options)
        assert len(calls) == 1

    def test_another_scheduler_makes_it_anew(self, graph, pipe, mask, tmp_path, monkeypatch):
        options = {"controls": False, "output": tmp_path / "rows.jsonl", "num_inference_steps": 1}
        run(graph, {"mask": mask}, **options)
        monkeypatch.setattr(pipe, "scheduler", EulerDiscreteScheduler.from_config(pipe.scheduler.config))
        with tiny.counted(pipe.unet) as calls:
            run(graph, {"mask": mask}, **options)
        assert len(calls) == 1

    def test_a_place_that_cannot_be_written_is_refused_before_any_picture(self, graph, pipe, mask, tmp_path):
        cannot = pytest.raises(InvalidFile, match="none/rows.jsonl cannot be written: No such file or directory")
        with tiny.counted(pipe.unet) as calls, cannot:
            run(graph, {"mask": mask}, output=tmp_path / "none" / "rows.jsonl")
        assert calls == []


def test_the_batch_size_does_not_change_a_picture(graph, mask):
    tables = [run(graph, {"mask": mask}, batch_size=size) for size in (1, 3, 16)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], atol=ONE_LEVEL)


def test_a_picture_does_not_depend_on_its_neighbours(graph, mask):
    together = generate(graph, mask, ["a red circle", "a blue star", "a red circle"], [0, 1, 2], num_inference_steps=2)
    alone = generate(graph, mask, ["a blue star"], [1], num_inference_steps=2)
    difference = np.abs(np.asarray(together[1], dtype=int) - np.asarray(alone[0], dtype=int))
    assert difference.max() <= 2
    assert np.abs(np.asarray(together[0], dtype=int) - np.asarray(together[2], dtype=int)).mean() > 2  # another seed is another image


@pytest.mark.parametrize("make", [run, lambda graph, changes, prompts: generate(graph, None, prompts, [0], num_inference_steps=1)])
def test_prompts_beyond_the_length_warn_of_the_words_they_lose(graph, make):
    with pytest.warns(UserWarning, match="longer than the model's 24 tokens; it loses '.*stipple'"):
        make(graph, {"none": None}, prompts=["the emblem of astoria and " * 5 + "stipple"])


def test_repeated_prompts_are_rows_of_their_own(graph):
    table = run(graph, {"none": None}, prompts=[PROMPTS[0]] * 2)
    assert len(table) == 4
    assert table["score"].iloc[:2].tolist() == pytest.approx(table["score"].iloc[2:].tolist(), abs=ONE_LEVEL)


def test_what_cannot_work_is_refused_before_any_picture(graph, pipe, mask, tmp_path):
    foreign = NeuronMask(Neurons({"unet.none": [0]}, {"unet.none": 4}))
    with tiny.counted(pipe.unet) as calls:
        with pytest.raises(UnknownSite, match="the model has no site unet.none"):
            run(graph, {"mask": mask, "foreign": foreign})
        for name in ("prompts", "seeds", "metrics"):
            with pytest.raises(InvalidInput, match=f"there are no {name} to evaluate; give at least one"):
                run(graph, {"mask": mask}, **{name: []})
        with pytest.raises(InvalidInput, match=r"LatentShare\(\) compares a run with its two ends, which localize makes"):
            run(graph, {"mask": mask}, metrics=[LatentShare()])
        with pytest.raises(InvalidInput, match="two metrics have the same name: brightness, brightness"):
            run(graph, {"mask": mask}, metrics=[Brightness(), Brightness()])
        with pytest.raises(InvalidInput, match='the name "none" is the untouched model\'s; give the intervention another'):
            run(graph, {"none": mask})
        with pytest.raises(InvalidInput, match="2 prompts and 1 seed are no pairs; give one seed a prompt"):
            generate(graph, None, PROMPTS[:2], [0])
    assert calls == []


class TestSummarize:
    @pytest.fixture
    def table(self) -> pd.DataFrame:
        rng = np.random.default_rng(0)
        rows = itertools.product(["none", "mask"], [f"prompt {number}" for number in range(12)], range(3), ["a", "b"])
        table = pd.DataFrame(rows, columns=["intervention", "prompt", "seed", "metric"])
        return table.assign(score=rng.normal(size=len(table)) + (table["intervention"] == "mask") + 3 * (table["metric"] == "b"))

    def test_means_lie_inside_their_intervals(self, table):
        summary = summarize(table)
        assert list(summary.columns) == ["intervention", "metric", "mean", "low", "high", "images"]
        assert list(zip(summary["intervention"], summary["metric"], strict=True)) == list(itertools.product(["none", "mask"], ["a", "b"]))
        assert (summary["low"] < summary["mean"]).all()
        assert (summary["mean"] < summary["high"]).all()
        assert (summary["images"] == 36).all()
        expected = table.groupby(["intervention", "metric"])["score"].mean()
        for row in summary.itertuples():
            assert row.mean == pytest.approx(expected[row.intervention, row.metric])

    def test_an_interval_is_near_the_normal_one_over_prompts(self, table):
        (row,) = summarize(table[(table["intervention"] == "none") & (table["metric"] == "a")]).itertuples()
        prompts = table[(table["intervention"] == "none") & (table["metric"] == "a")].groupby("prompt")["score"].mean()
        half = 1.96 * prompts.std(ddof=0) / np.sqrt(len(prompts))
        assert row.high - row.low == pytest.approx(2 * half, rel=0.15)

    def test_more_confidence_is_a_wider_interval(self, table):
        narrow, wide = (summarize(table, confidence=confidence) for confidence in (0.5, 0.99))
        assert (wide["high"] - wide["low"] > narrow["high"] - narrow["low"]).all()

    def test_more_pictures_of_the_same_prompts_do_not_narrow_it(self, table):
        once, often = summarize(table), summarize(pd.concat([table] * 4))
        pd.testing.assert_frame_equal(once.drop(columns="images"), often.drop(columns="images"))

    def test_scores_that_do_not_apply_are_left_out(self, table):
        silent = table["prompt"].isin(["prompt 0", "prompt 1"])
        expected = summarize(table[~silent])
        pd.testing.assert_frame_equal(summarize(table.assign(score=table["score"].where(~silent))), expected)
        nothing = summarize(table.assign(score=float("nan")))
        assert nothing[["mean", "low", "high"]].isna().all(axis=None)
        assert (nothing["images"] == 0).all()

    def test_it_is_deterministic(self, table):
        pd.testing.assert_frame_equal(summarize(table), summarize(table))

    def test_of_one_prompt_or_equal_scores_no_interval_is_known(self, table):
        one = summarize(table[table["prompt"] == "prompt 0"])
        equal = summarize(table.assign(score=0.25))
        assert (equal["mean"] == 0.25).all()
        for summary in (one, equal):
            assert summary["mean"].notna().all()
            assert summary[["low", "high"]].isna().all(axis=None)


def test_the_file_holds_one_job_a_line(graph, mask, tmp_path):
    run(graph, {"mask": mask}, controls=False, output=tmp_path / "rows.jsonl", metrics=[Brightness(), Letters()])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 4
    assert all(row["scores"].keys() == {"brightness", "letters"} for row in rows)
