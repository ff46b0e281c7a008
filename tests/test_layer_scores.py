import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from neuroscope import Cost, Effects, InvalidFile, InvalidInput, LayerScores, Patch, Provenance, load, save
from neuroscope.core.results.layer_scores import contact_sheet
from neuroscope.core.results.quality import Confidence
from tests.test_effects import effects_of

PROVENANCE = Provenance("family", "model", "stipple", "LocoGen()")


def scores_of(values, **fields) -> LayerScores:
    """Scores of effects [patch, prompt, seed], each patch one layer unless patches are given."""
    effects = effects_of(values, fields.pop("full", None), fields.pop("patches", None), fields.pop("relative", False))
    return LayerScores.of(effects, provenance=PROVENANCE, **fields)


def of_prompts(best: list[int], layers: int = 4) -> LayerScores:
    """Each prompt has one layer, on which all three seeds agree."""
    values = np.zeros((layers, len(best), 3))
    for prompt, layer in enumerate(best):
        values[layer, prompt] = 1.0
    return scores_of(values)


@pytest.fixture
def whole() -> LayerScores:
    """Scores with everything that can be saved."""
    rng = np.random.default_rng(0)
    patches = [Patch((layer, layer + 1), part) for layer in range(3) for part in ("0-50 %", "50-100 %")]
    sheet = torch.from_numpy(rng.integers(0, 256, (2, 8, 4, 6, 3), dtype=np.uint8))
    return scores_of(
        rng.normal(size=(6, 3, 2)),
        full=rng.normal(size=(3, 2)),
        patches=patches,
        relative=True,
        names=("zero", "one", "two", "three"),
        cost=Cost(12, 3.5, 1000),
        columns=("source", *map(str, patches), "target"),
        sheet=sheet,
    )


class TestScores:
    def test_they_are_the_means_of_the_layers_that_the_probes_hold(self):
        scores = scores_of(np.array([1.0, 3.0])[:, None, None] * np.ones((2, 2, 2)), patches=[Patch((4, 5)), Patch((5, 9))])
        assert scores.layers == (4, 5, 9)
        assert scores.scores == (1.0, 2.0, 3.0)

    def test_top_is_best_first_and_ties_go_to_the_earlier_layer(self):
        scores = LayerScores((2, 3, 5, 8), (0.5, 0.9, 0.5, 0.9))
        assert scores.top(4) == [3, 8, 2, 5]
        assert scores.top(1) == [3]
        for count in (0, 5):
            with pytest.raises(InvalidInput, match=rf"top\({count}\) is not possible here; choose from 1 to 4"):
                scores.top(count)

    def test_best_is_the_probe_with_the_largest_mean(self):
        patches = [Patch((0, 1), "0-50 %"), Patch((0, 1), "50-100 %"), Patch((1, 2), "0-50 %")]
        assert scores_of([[[0.1]], [[0.4]], [[0.3]]], patches=patches).best == patches[1]

    def test_best_is_no_probe_of_which_the_metric_says_nothing(self):
        assert scores_of([[[np.nan]], [[0.2]]]).best == Patch((1,))

    def test_names_are_numbers_unless_given(self, whole):
        assert LayerScores((3, 7), (0.0, 0.0)).name(7) == "layer 7"
        assert whole.name(2) == "two"

    def test_agreement_is_spearmans_correlation(self):
        first, second = LayerScores((0, 1, 2, 3), (0.1, 0.2, 0.3, 0.4)), LayerScores((0, 1, 2, 3), (1.0, 3.0, 2.0, 9.0))
        differences = np.array([0, 1, -1, 0])  # between ranks
        assert first.agreement(second) == pytest.approx(1 - 6 * (differences**2).sum() / (4 * (16 - 1)))
        assert first.agreement(first) == pytest.approx(1)

    @pytest.mark.parametrize("other", [LayerScores((0, 2), (1.0, 2.0)), LayerScores((0, 1), (1.0, 2.0), names=("resnet 0", "resnet 1"))])
    def test_agreement_of_other_layers_is_refused(self, other):
        with pytest.raises(InvalidInput, match="agreement needs scores of the same layers, not 2 and 2 different ones"):
            LayerScores((0, 1), (1.0, 2.0)).agreement(other)


class TestVerdict:
    @pytest.mark.parametrize(
        ("best", "verdict"),
        [
            ([2, 2, 2, 2], "all 4 prompts agree on layer 2"),
            ([2, 2, 1, 2], "3 of 4 prompts agree on layer 2"),
            ([2, 1, 2, 2, 1, 1, 3], "the 7 prompts disagree: layer 2 (3), layer 1 (3), layer 3 (1); the place depends on the prompt"),
        ],
    )
    def test_it_says_whether_prompts_agree(self, best, verdict):
        scores = of_prompts(best)
        assert scores.verdict == verdict
        assert repr(scores) == f"LayerScores('stipple' by LocoGen(), 4 layers: {verdict})"

    @pytest.mark.parametrize("by_prompt", [True, False])
    def test_a_tie_that_a_search_finds_names_both_layers_and_no_agreement(self, by_prompt):
        """Half of the prompts each, or half of every prompt's effect."""
        values = np.zeros((4, 6, 1))
        values[1], values[3] = 0.5, 0.5
        if by_prompt:
            values[1, :, 0], values[3, :, 0] = np.repeat([[1, 0], [0, 1]], 3, axis=1)
        verdict = scores_of(values, confidence=Confidence(1.0, (1, 3), 6, 6, tied=(1, 3))).verdict
        assert verdict.startswith("layer 1 and layer 3 are statistically tied (0.50 and 0.50); ")
        assert "agree on" not in verdict
        assert ("the 6 prompts disagree: layer 1 (3), layer 3 (3)" in verdict) == by_prompt

    def test_components_have_their_names(self):
        assert scores_of([[[0.0]], [[1.0]]], names=("cross 0", "resnet 3")).verdict == "the one prompt says resnet 3"

    def test_effects_whose_interval_holds_zero_do_not_stand_out(self):
        values = np.zeros((3, 4, 1))
        values[1, :, 0] = [-1.0, 2.0, -1.5, 1.0]
        scores = scores_of(values)
        low, high = scores.effects.intervals()[1]
        assert low < 0 < high
        assert scores.verdict == f"no layer stands out; the best, layer 1, has 0.12 [{low:.2f}, {high:.2f}]"

    def test_prompts_with_layers_of_their_own_disagree_even_where_no_layer_serves_all(self):
        """The mean's interval reaches a rounding error below zero, and each prompt's own layer does all."""
        scores = scores_of(np.array([[[1.0], [-1e-7]], [[-1e-7], [1.0]]]))
        assert scores.effects.intervals()[0][0] < 0
        assert scores.verdict == "the 2 prompts disagree: layer 0 (1), layer 1 (1); the place depends on the prompt"

    @pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
    def test_without_any_effect_no_layer_stands_out(self, value):
        assert scores_of(np.full((3, 2, 2), value)).verdict.startswith("no layer stands out; the best, layer 0, has")

    def test_a_window_between_windows_that_do_the_opposite_is_no_layers(self):
        """The middle window alone does something, but each of its layers is in an opposite window too."""
        patches = [Patch((0, 1)), Patch((1, 2)), Patch((2, 3))]
        assert scores_of([[[-3.0]], [[1.0]], [[-3.0]]], patches=patches).verdict.startswith("no layer stands out")

    def test_a_prompt_on_which_nothing_has_an_effect_has_no_vote(self):
        values = np.zeros((3, 5, 2))
        values[1, :4] = 1.0
        assert scores_of(values).verdict == "all 4 prompts agree on layer 1"


class TestTables:
    def test_each_prompt_has_its_best_layer_and_the_next(self):
        table = scores_of(np.array([[0.2, -1.0], [0.7, -2.0], [0.5, -0.5]])[:, :, None]).by_prompt()
        assert list(table.columns) == ["prompt", "layer", "effect", "next_best"]
        assert table.to_numpy().tolist() == [["prompt 0", 1, 0.7, 0.5], ["prompt 1", None, -0.5, -1.0]]

    def test_the_grid_has_layers_and_parts_in_their_order(self):
        parts = ("start", "eos", "padding")
        patches = [Patch((layer,), part) for layer in (0, 1) for part in parts]
        grid = scores_of(np.arange(6.0)[:, None, None], patches=patches).grid()
        assert list(grid.index) == [0, 1]
        assert list(grid.columns) == list(parts)
        assert grid.to_numpy().tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_a_grids_cell_is_the_mean_over_the_windows_that_hold_the_layer(self):
        grid = scores_of([[[1.0]], [[4.0]]], patches=[Patch((0, 1), "all"), Patch((1, 2), "all")]).grid()
        assert grid["all"].tolist() == [1, 2.5, 4]

    def test_the_table_has_scores_intervals_and_shares(self):
        rng = np.random.default_rng(0)
        scores = scores_of(rng.normal(size=(3, 5, 2)), full=np.full((5, 2), 4.0))
        table = scores.to_frame()
        assert list(table.columns) == ["layer", "name", "score", "low", "high", "share"]
        assert table["name"].tolist() == ["layer 0", "layer 1", "layer 2"]
        np.testing.assert_allclose(table["share"], table["score"] / 4)
        np.testing.assert_allclose(table[["low", "high"]], scores.effects.intervals())

    def test_without_effects_the_table_has_the_scores(self):
        assert LayerScores((1, 2), (0.5, 0.25)).to_frame().to_numpy().tolist() == [[1, "layer 1", 0.5], [2, "layer 2", 0.25]]

    @pytest.mark.parametrize("what", ["best", "verdict", "by_prompt", "grid"])
    def test_what_needs_effects_is_refused_without(self, what):
        scores = LayerScores((0, 1), (0.5, 0.1), Provenance(method="Welch()"))
        with pytest.raises(
            InvalidInput, match=rf"{what} needs scores measured on generated images, as localize gives them, not 'Welch\(\)'"
        ):
            getattr(scores, what)() if what in ("by_prompt", "grid") else getattr(scores, what)
        assert "2 layers)" in repr(scores)


class TestSheet:
    def test_pictures_come_back_by_prompt_and_column(self):
        images = [[Image.new("RGB", (6, 4), colour) for colour in row] for row in (("red", "blue", "lime"), ("white", "black", "red"))]
        scores = scores_of(np.zeros((1, 3, 1)), columns=("source", "0", "target"), sheet=contact_sheet(images))
        assert list(scores.images) == ["prompt 0", "prompt 1"]
        for row, found in zip(images, scores.images.values(), strict=True):
            assert [each.size for each in found] == [(6, 4)] * 3
            assert [each.getpixel((5, 3)) for each in found] == [each.getpixel((0, 0)) for each in row]

    def test_without_a_sheet_there_are_no_pictures(self):
        assert scores_of([[[1.0]]]).images == {}


class TestSaving:
    def test_nothing_is_lost(self, whole, tmp_path):
        again = load(save(whole, tmp_path / "layers.safetensors"), LayerScores)
        for name in ("layers", "scores", "provenance", "names", "cost", "columns", "verdict"):
            assert getattr(again, name) == getattr(whole, name)
        assert torch.equal(again.sheet, whole.sheet)
        assert isinstance(again.effects, Effects)
        for name in ("patches", "prompts", "seeds", "relative"):
            assert getattr(again.effects, name) == getattr(whole.effects, name)
        assert torch.equal(again.effects.values, whole.effects.values)
        assert torch.equal(again.effects.total, whole.effects.total)
        assert {prompt: [each.tobytes() for each in row] for prompt, row in again.images.items()} == {
            prompt: [each.tobytes() for each in row] for prompt, row in whole.images.items()
        }

    def test_scores_alone_are_saved_too(self, tmp_path):
        again = load(save(LayerScores((4, 7), (0.25, -1.0), PROVENANCE), tmp_path / "layers.safetensors"), LayerScores)
        assert (again.layers, again.scores, again.provenance) == ((4, 7), (0.25, -1.0), PROVENANCE)
        assert (again.names, again.effects, again.cost, again.columns, again.sheet) == ((), None, None, (), None)

    def test_files_of_version_0_1_are_refused(self, tmp_path):
        """They have no checksum."""
        header = '{"kind": "layer-scores", "format": 1, "layers": [4, 7], "provenance": {"concept": "stipple"}}'
        save_file({"scores": torch.tensor([0.5, 2.0], dtype=torch.float64)}, tmp_path / "old.safetensors", {"neuroscope": header})
        with pytest.raises(InvalidFile, match="old.safetensors has format 1, which has no checksum; make it again with this version"):
            load(tmp_path / "old.safetensors", LayerScores)
