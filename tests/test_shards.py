"""Shards: parts of a run that are made apart and merged are the run, to the bit."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pytest
import torch

from neuroscope import (
    CausalAttribution,
    HookGraph,
    ImageShare,
    InvalidInput,
    LatentShare,
    LedgerSummary,
    Localization,
    LocoGen,
    NeuronAblation,
    NeuronGradient,
    NeuronMask,
    Shard,
    Welch,
    atlas,
    dose_response,
    evaluate,
    localize,
    merge,
    rank,
    record,
)
from neuroscope.generation.executors import Workers
from tests.families import tiny
from tests.laws import test_causal_attribution_laws, test_localization_laws
from tests.laws.members import members
from tests.localization.planted import SMALL, STIPPLE, Corner, concept_of, planted

CONCEPT = concept_of(STIPPLE[:2])
ONCE: dict[str, Any] = SMALL | {"seeds": [3], "batch_size": 5, "quiet": True}
LAYER_METHODS = [each for methods in test_localization_laws.EXAMPLES.values() for each in methods]
NEURON_METHODS = [each for methods in test_causal_attribution_laws.EXAMPLES.values() for each in methods]
NEURON_METHODS = [replace(each, group=8) if isinstance(each, NeuronAblation) else each for each in NEURON_METHODS]
METHODS = [*LAYER_METHODS, *NEURON_METHODS, LocoGen(search="sets")]


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return planted(STIPPLE[:2], dict.fromkeys(range(7), STIPPLE), pipe=tiny.shallow())


def call(method: Any, graph: HookGraph, metric: Any = LatentShare()) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The verb of a method, its arguments and its options."""
    if isinstance(method, Localization):
        return localize, (graph, CONCEPT, method, metric), dict(ONCE)
    return rank, (graph, CONCEPT, method), ONCE | {"layers": 3, "metric": metric}


@dataclass(frozen=True)
class Broken:
    """A metric that fails."""

    name: str = "broken"

    def __call__(self, images, prompts):
        raise ZeroDivisionError("no score")


def values_of(found: Any) -> list[torch.Tensor]:
    if hasattr(found, "effects"):
        return [found.effects.values, found.effects.total]
    return list(found.scores.values())


def make_shards(folder, count: int, verb: Any, args: Any, options: Any) -> list[Any]:
    """The ledgers of all shards, made one after the other, last first."""
    found = []
    for number in range(count, 0, -1):
        report = Shard(number, count).make(verb, *args, output=folder / str(number), **options)
        assert report.shard == Shard(number, count)
        found.append(folder / str(number))
    return found


def test_every_method_is_here():
    assert {type(each) for each in LAYER_METHODS} == set(members(Localization))
    assert {type(each) for each in NEURON_METHODS} == set(members(CausalAttribution))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_merged_shards_are_one_run_to_the_bit_or_the_method_is_refused(method, graph, tmp_path):
    verb, args, options = call(method, graph)
    if method.not_sharded:
        with (
            tiny.counted(graph.denoiser) as calls,
            pytest.raises(InvalidInput, match=r"cannot be made in shards|executor would be ignored"),
        ):
            Shard(1, 2).make(verb, *args, output=tmp_path / "shard", **options)
        assert calls == []
        assert not (tmp_path / "shard").exists()
        return
    alone = verb(*args, output=tmp_path / "alone", **options)
    with tiny.counted(graph.denoiser) as counted, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = merge(make_shards(tmp_path, 2, verb, args, options), tmp_path / "merged")
    nfe = sum(counted)
    assert [run.missing for run in summary.runs] == [{}]
    assert summary.runs[0].cost.nfe == nfe
    with tiny.counted(graph.denoiser) as calls:
        again = verb(*args, output=tmp_path / "merged", **options)
    assert calls == []
    assert again.cost.nfe == nfe
    for found, expected in zip(values_of(again), values_of(alone), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("metric", "count"), [(LatentShare(), 1), (LatentShare(), 3), (ImageShare(), 3), (Corner(), 3), (Corner(), 9)], ids=str
)
def test_any_number_of_shards_and_any_metric(metric, count, graph, tmp_path):
    """Shards beyond the number of tasks make nothing."""
    verb, args, options = call(LocoGen(window=3), graph, metric)
    alone = verb(*args, output=tmp_path / "alone", **options)
    ledgers = [ledger for ledger in make_shards(tmp_path, count, verb, args, options) if ledger.exists()]
    merge(ledgers, tmp_path / "merged")
    again = verb(*args, output=tmp_path / "merged", **options)
    for found, expected in zip(values_of(again), values_of(alone), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def masks(graph: HookGraph) -> dict[str, Any]:
    return {"mask": tiny.mask(graph, layer=3)}


def test_a_table_of_merged_shards_is_that_of_one_run(graph, tmp_path):
    args, options = (graph, masks(graph), CONCEPT.present, [0, 1], Corner()), SMALL | {"batch_size": 5, "quiet": True}
    alone = evaluate(*args, **options)
    ledgers = make_shards(tmp_path, 2, evaluate, args, options)
    merge(ledgers, tmp_path / "merged")
    with tiny.counted(graph.denoiser) as calls:
        pd.testing.assert_frame_equal(evaluate(*args, output=tmp_path / "merged", **options), alone, check_exact=True)
    assert calls == []


def test_a_dose_response_of_merged_shards_is_that_of_one_run(graph, tmp_path):
    scores = rank(graph, CONCEPT, NeuronAblation(group=16), layers=3, **ONCE)
    args = (graph, scores, CONCEPT.present)
    options = ONCE | {"metrics": Corner(), "budgets": [4], "unrelated": CONCEPT.absent}
    alone = dose_response(*args, **options)
    merge(make_shards(tmp_path, 2, dose_response, args, options), tmp_path / "merged")
    with tiny.counted(graph.denoiser) as calls:
        again = dose_response(*args, output=tmp_path / "merged", **options)
    assert calls == []
    assert torch.equal(again.scores, alone.scores)
    assert torch.equal(again.changes, alone.changes)


def test_a_shard_that_was_stopped_goes_on_and_says_what_it_made(graph, tmp_path):
    verb, args, options = call(LocoGen(), graph, Corner())
    whole = Shard(1, 2).make(verb, *args, output=tmp_path / "whole", **options)
    assert whole.images > 5
    with tiny.stopping(graph.denoiser, 3), pytest.raises(KeyboardInterrupt):
        Shard(1, 2).make(verb, *args, output=tmp_path / "1", **options)
    rest = Shard(1, 2).make(verb, *args, output=tmp_path / "1", **options)
    assert 0 < rest.images == whole.images - 5
    assert Shard(1, 2).make(verb, *args, output=tmp_path / "1", **options).images == 0
    assert str(rest) == f"shard 1/2: made {rest.images} images in {rest.tasks} tasks, in {tmp_path / '1'}"


@pytest.mark.parametrize(("text", "expected"), [("3/16", Shard(3, 16)), (" 1/1 ", Shard(1, 1))])
def test_a_shard_is_read_from_text(text, expected):
    assert Shard.parse(text) == expected
    assert str(expected) == text.strip()


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/4", "a/b", "1.0/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(InvalidInput, match="such as 3/16|number=|count="):
        Shard.parse(text)


@pytest.mark.parametrize("missing", ["output", "batch_size"])
def test_what_a_shard_needs_is_asked_for(missing, graph, tmp_path):
    options = SMALL | {"output": tmp_path / "1", "batch_size": 4}
    options.pop(missing)
    with tiny.counted(graph.denoiser) as calls, pytest.raises(InvalidInput, match=f"{missing} is missing: .*; give {missing}="):
        Shard(1, 2).make(evaluate, graph, masks(graph), CONCEPT.present, [0], Corner(), **options)
    assert calls == []


def test_a_method_on_recordings_has_no_shards(graph, tmp_path):
    with pytest.raises(InvalidInput, match="would be ignored: .*scores recorded responses and makes no image"):
        Shard(1, 2).make(rank, graph, CONCEPT, Welch(), output=tmp_path / "1", batch_size=4)


def test_the_images_that_another_shard_makes_are_missing_not_zero(graph, tmp_path):
    args, options = (graph, {"none": None}, CONCEPT.present, [0], Corner()), SMALL | {"batch_size": 1, "quiet": True, "controls": False}
    Shard(1, 2).make(evaluate, *args, output=tmp_path / "1", **options)
    summary = merge([tmp_path / "1"], tmp_path / "merged")
    assert len(summary.runs[0].missing) == 1
    table = evaluate(*args, output=tmp_path / "merged", **options)
    assert not any(map(math.isnan, table["score"]))
    assert isinstance(masks(graph)["mask"], NeuronMask)


def test_another_verb_has_no_shards(graph, tmp_path):
    with pytest.raises(InvalidInput, match="record cannot be made in shards; give one of localize, rank, atlas, evaluate, dose_response"):
        Shard(1, 2).make(record, graph, CONCEPT, output=tmp_path / "1", batch_size=4)


SEVERAL = (CONCEPT, replace(CONCEPT, name="reversed", present=CONCEPT.absent, absent=CONCEPT.present))


class Idle(Workers):
    """Workers that are given nothing to make."""

    def run(self, work: Any, tasks: Any, done: int = 0) -> Any:
        assert list(tasks) == []
        return iter(())


@pytest.mark.parametrize("method", [LocoGen(window=3), NeuronAblation(group=32)], ids=repr)
@pytest.mark.parametrize("count", [2, 5])
def test_an_atlas_of_merged_shards_is_that_of_one_run_and_all_shards_have_as_many_tasks(method, count, graph, tmp_path):
    args, options = (graph, SEVERAL, method, Corner()), ONCE | ({"layers": 3} if isinstance(method, NeuronAblation) else {})
    alone = atlas(*args, output=tmp_path / "alone", **options)
    reports = [Shard(number, count).make(atlas, *args, output=tmp_path / str(number), **options) for number in range(1, count + 1)]
    tasks = [each.tasks for each in reports]
    assert 0 < max(tasks) <= min(tasks) + 1
    summary = merge([tmp_path / str(number) for number in range(1, count + 1)], tmp_path / "merged")
    assert [run.missing for run in summary.runs] == [{}, {}]
    again = atlas(*args, output=tmp_path / "merged", executor=Idle(), **options)
    for name in alone:
        for found, expected in zip(values_of(again[name]), values_of(alone[name]), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_what_a_lost_shard_of_an_atlas_held_is_missing(graph, tmp_path):
    """Every shard says what each concept needs, also one that has no task of it."""
    for number in (1, 2, 3):
        Shard(number, 3).make(atlas, graph, SEVERAL, LocoGen(window=3), Corner(), output=tmp_path / str(number), **ONCE)
    summary = merge([tmp_path / "1"], tmp_path / "merged")
    assert len(summary.runs) == 2
    assert sum(run.done for run in summary.runs) == summary.rows


@pytest.mark.parametrize("method", [Welch(), NeuronGradient(), LocoGen(search="auto")], ids=repr)
def test_an_atlas_by_a_method_without_shards_is_refused(method, graph, tmp_path):
    with pytest.raises(InvalidInput, match="cannot be made in shards|would be ignored"):
        Shard(1, 2).make(atlas, graph, SEVERAL, method, output=tmp_path / "1", **SMALL | {"batch_size": 4, "quiet": True})
    assert not (tmp_path / "1").exists()


def test_a_shard_without_a_task_is_merged_as_the_others(graph, tmp_path):
    args, options = (graph, {"none": None}, CONCEPT.present, [0], Corner()), SMALL | {"batch_size": 1, "quiet": True, "controls": False}
    made = [Shard(number, 3).make(evaluate, *args, output=tmp_path / str(number), **options) for number in (1, 2, 3)]
    assert [each.images for each in made] == [1, 1, 0]
    summary = merge([tmp_path / str(number) for number in (1, 2, 3)], tmp_path / "merged")
    assert not summary.runs[0].missing


def test_a_task_that_fails_in_a_shard_blames_no_other(graph, tmp_path):
    args, options = (graph, {"none": None}, CONCEPT.present, [0, 1]), SMALL | {"batch_size": 1, "quiet": True, "controls": False}
    with pytest.raises(ZeroDivisionError):
        Shard(1, 1).make(evaluate, *args, Broken(), output=tmp_path / "1", **options)
    (run,) = LedgerSummary.of(tmp_path / "1").runs
    assert (len(run.failed), len(run.missing)) == (1, 4)


def test_gradients_have_no_shards(graph, tmp_path):
    with pytest.raises(InvalidInput, match=r"NeuronGradient\(\) cannot be made in shards"):
        Shard(1, 2).make(rank, graph, CONCEPT, output=tmp_path / "1", batch_size=4, quiet=True)
