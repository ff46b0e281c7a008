"""Groups of images that do not fit the memory are halved, and every result says of how many images, and a ledger of which."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from neuroscope import (
    Atlas,
    Cost,
    HookGraph,
    InvalidInput,
    LatentShare,
    LedgerSummary,
    Local,
    LocoGen,
    NeuronAblation,
    Shard,
    Welch,
    atlas,
    dose_response,
    evaluate,
    load,
    localize,
    merge,
    rank,
    save,
)
from neuroscope.cli.app import run as command
from neuroscope.core.results.quality import HALVED
from neuroscope.generation.executors import Part, Workers
from neuroscope.generation.ledgers.rows import Lines, score_line
from tests import ray_parts
from tests.localization.planted import SMALL, Corner
from tests.test_executors import CONCEPT, LAYER_METHODS, NEURON_METHODS

OPTIONS: dict[str, Any] = SMALL | {"batch_size": 4, "quiet": True}
METHODS = [*LAYER_METHODS, *(each for each in NEURON_METHODS if each.makes_images)]
SAID = f"4 images {HALVED}"


@pytest.fixture(scope="module")
def roomy() -> HookGraph:
    return ray_parts.graph()


@pytest.fixture
def crowded() -> HookGraph:
    """The same model, on a device that holds two rows at a time."""
    return HookGraph(ray_parts.crowded_pipeline())


@pytest.fixture(autouse=True)
def halving_is_expected() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "out of memory; going on with 2 images at a time")
        yield


def table(graph: HookGraph, **options: Any) -> pd.DataFrame:
    """Six images in two tasks, of four and of two."""
    return evaluate(graph, {}, CONCEPT.present, [0, 1, 2], [Corner(), Corner(-1.0, "opposite")], **OPTIONS | options)


class TestTables:
    def test_the_table_says_which_images(self, crowded, roomy, tmp_path):
        found, alone = table(crowded), table(roomy)
        assert found["halved"].tolist() == [True] * 8 + [False] * 4
        pd.testing.assert_frame_equal(pd.DataFrame(found.drop(columns="halved")), pd.DataFrame(alone))
        assert SAID in str(found.summary())
        assert HALVED not in str(alone.summary())

    @pytest.mark.parametrize("place", ["run", "run.jsonl"])
    def test_a_ledger_keeps_it_for_runs_that_go_on(self, place, crowded, roomy, tmp_path):
        first = table(crowded, output=tmp_path / place)
        again = table(roomy, output=tmp_path / place)
        pd.testing.assert_frame_equal(again, first, check_exact=True)
        assert "halved" not in table(roomy, output=tmp_path / f"other-{place}")
        assert b"halved" not in b"".join(path.read_bytes() for path in tmp_path.glob(f"other-{place}*") if path.is_file())

    def test_an_image_that_another_run_uses_is_said_there_too(self, crowded, roomy, tmp_path):
        table(crowded, output=tmp_path / "run")
        fewer = evaluate(roomy, {}, CONCEPT.present, [1, 2], [Corner(), Corner(-1.0, "opposite")], output=tmp_path / "run", **OPTIONS)
        assert fewer["halved"].tolist() == [True] * 4 + [False] * 4

    def test_a_dose_response_says_how_many(self, crowded, roomy, tmp_path):
        scores = rank(roomy, CONCEPT, Welch(), layers=3, quiet=True)
        asked = {"metrics": Corner(), "budgets": [2], "unrelated": ["a cup"], "seeds": [0, 1]} | OPTIONS
        found, alone = (dose_response(graph, scores, CONCEPT.present, **asked) for graph in (crowded, roomy))
        assert (found.halved, alone.halved) == (4 * 2 * 2 + 3 * 1 * 2, 0)  # doses, prompts and seeds; no change has no changed images
        assert f"22 images {HALVED}" in repr(found)
        save(found, tmp_path / "dose.safetensors")
        assert load(tmp_path / "dose.safetensors").halved == found.halved


class TestScores:
    @pytest.mark.parametrize(
        "method", [each for each in [*LAYER_METHODS, *NEURON_METHODS] if getattr(each, "makes_images", True)], ids=repr
    )
    def test_the_cost_of_every_method_says_of_how_many_images_as_its_ledger_does(self, method, crowded, roomy, tmp_path):
        def run(graph: HookGraph, **options: Any) -> Any:
            if method in LAYER_METHODS:
                return localize(graph, CONCEPT, method, LatentShare(), seeds=[3], keep_images=0, **OPTIONS | options)
            return rank(graph, CONCEPT, method, layers=3, seeds=[3], **OPTIONS | options)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = run(crowded, output=tmp_path / "run")
            again = run(roomy, output=tmp_path / "run")
            unkept, alone = run(crowded), run(roomy)
        rows = LedgerSummary.of(tmp_path / "run").halved if (tmp_path / "run").exists() else ()
        assert kept.cost.halved == again.cost.halved == len(rows)
        assert bool(unkept.cost.halved) == bool(kept.cost.halved)
        assert alone.cost.halved == 0

    def test_a_ranking_says_it(self, crowded):
        found = rank(crowded, CONCEPT, NeuronAblation(group=64), layers=3, pairs=1, **OPTIONS)
        assert f"{found.cost.halved} images {HALVED}" in repr(found)

    def test_a_result_says_it_when_it_is_shown_saved_and_added_up(self, crowded, tmp_path, capsys, untyped):
        found = localize(crowded, CONCEPT, LocoGen(window=3), Corner(), seeds=[0], **OPTIONS)
        count = found.cost.halved
        assert count > 0
        save(found, tmp_path / "layers.safetensors")
        assert load(tmp_path / "layers.safetensors").cost == found.cost
        assert command(["show", str(tmp_path / "layers.safetensors")]) == 0
        assert f"{count} images {HALVED}" in capsys.readouterr().out
        assert Atlas({"one": found, "two": found}).cost.halved == 2 * count

    def test_a_share_is_measured_against_ends_that_were_halved(self, roomy):
        """Of a run whose own group fits, the share depends on the source's rounding too."""
        found = localize(roomy, CONCEPT, LocoGen(window=3), LatentShare(), seeds=[0], executor=HalvesFirst(), **OPTIONS)
        assert found.cost.halved > 4
        found = localize(roomy, CONCEPT, LocoGen(window=3), Corner(), seeds=[0], executor=HalvesFirst(), **OPTIONS)
        assert found.cost.halved == 4


class HalvesFirst(Workers):
    """Makes the first task's rows in two halves."""

    def run(self, work, tasks, done=0):
        for number, part in Local().run(work, tasks, done):
            yield number, Part(part.numbers, part.scores, part.made, part.images, is_halved=not number)


class TestLedgers:
    def test_show_says_how_many_and_which(self, crowded, tmp_path, capsys, untyped):
        table(crowded, output=tmp_path / "run")
        assert command(["show", str(tmp_path / "run")]) == 0
        said = capsys.readouterr().out
        assert f"4 rows made {HALVED}" in said
        assert f"6 of 6 images done, 0 missing, 0 of them failed, 4 made {HALVED}; " in said
        assert command(["show", str(tmp_path / "run"), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert len(facts["halved"]) == facts["runs"][0]["halved"] == 4

    def test_merged_shards_keep_it(self, crowded, roomy, tmp_path):
        parts = [tmp_path / str(number) for number in (1, 2)]
        for number, part in enumerate(parts, 1):
            graph = crowded if number == 1 else roomy
            Shard(number, 2).make(evaluate, graph, {}, CONCEPT.present, [0, 1, 2], Corner(), output=part, **OPTIONS)
        merged = merge(parts, tmp_path / "whole")
        assert (len(merged.halved), merged.runs[0].halved) == (4, 4)
        whole = evaluate(roomy, {}, CONCEPT.present, [0, 1, 2], Corner(), output=tmp_path / "whole", **OPTIONS)
        assert whole["halved"].tolist() == [True] * 4 + [False] * 2

    def test_a_row_that_is_made_again_is_what_it_is_then(self):
        lines = Lines.of(score_line("a", {"score": 1.0}, 0, halved=True) + score_line("b", {"score": 1.0}, halved=True))
        assert lines.halved == {"a", "b"}
        lines.absorb(Lines.of(score_line("a", {"score": 1.0}, 1)))
        assert lines.halved == {"b"}

    def test_its_checksum_covers_it(self):
        line = score_line("a", {"score": 1.0}, halved=True)
        assert Lines.of(line.replace(b',"halved":true', b"")).scores == {}
        assert Lines.of(score_line("a", {"score": 1.0}).replace(b"}\n", b',"halved":true}\n')).scores == {}


def test_a_cost_says_and_adds_it():
    assert str(Cost(1, halved=1)).endswith(f", 1 image {HALVED}")
    assert (Cost(halved=2) + Cost(halved=3)).halved == 5
    with pytest.raises(InvalidInput, match="the cost's halved=-1"):
        Cost(halved=-1)


def test_an_atlas_of_layers_says_it(crowded):
    assert f"images {HALVED}" in repr(atlas(crowded, [CONCEPT], LocoGen(window=3), Corner(), seeds=[0], **OPTIONS))
