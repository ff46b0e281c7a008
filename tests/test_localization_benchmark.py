import numpy as np
import pandas as pd
import pytest
import torch

import neuroscope as ns
from benchmarks import localization
from neuroscope.core.results.effects import Effects, Patch

METHODS = {"attention": (ns.AttentionContribution(steps=1, fidelity=0), True)}
PLANT = "sd1/layer/1000"


def sweep(*by_layer: np.ndarray) -> ns.LayerScores:
    """All windows of one layer, with these effects [prompt, seed] and a total effect of 1."""
    values = torch.from_numpy(np.stack(by_layer).astype(np.float64))
    patches = tuple(Patch((layer,)) for layer in range(len(values)))
    prompts = tuple(f"prompt {number}" for number in range(values.shape[1]))
    return ns.LayerScores.of(Effects(patches, prompts, tuple(range(values.shape[2])), values, torch.ones(values.shape[1:])))


def scattered(mean: float, seed: int) -> np.ndarray:
    return mean + 0.3 * np.random.default_rng(seed).normal(size=(8, 4))


def test_layers_that_a_sweep_tells_apart():
    same = scattered(0.5, 0)
    assert localization.is_told_apart(sweep(same, same - 0.2), 0, 1)
    assert localization.is_told_apart(sweep(same, same - 0.2), 1, 0)
    assert not localization.is_told_apart(sweep(scattered(0.5, 0), scattered(0.5, 1)), 0, 1)


def test_how_often_a_sweep_names_its_layer_again():
    even = np.resize([1.0, 0.0], (8, 4))
    assert localization.redrawn(sweep(np.full((8, 4), 0.5), np.full((8, 4), 0.4))) == 1
    assert localization.redrawn(sweep(np.zeros((8, 4)), np.zeros((8, 4)))) == 1
    assert 0.4 < localization.redrawn(sweep(even + 0.01, 1 - even)) < 0.7


@pytest.mark.parametrize(
    ("said", "expected"), [(0, (True, True, True)), (1, (False, True, True)), (2, (False, False, True)), (3, (False, False, False))]
)
def test_what_counts_as_found(said, expected):
    best = scattered(0.6, 0)
    noisy = best - 0.02 + 0.4 * np.random.default_rng(1).normal(size=best.shape)
    noisy -= (noisy - best).mean() + 0.02
    found = localization.named(said, sweep(best, best - 0.005, noisy, best - 0.3))
    assert tuple(found[name] for name in ("same", "as good", "not told apart")) == expected
    assert found["true"] == 0


def test_a_layer_where_there_is_none_is_never_found():
    found = localization.named(0, sweep(np.zeros((8, 4)), np.zeros((8, 4))))
    assert not any(found[name] for name in ("same", "as good", "not told apart"))


def test_finished_rows_are_not_made_again(tmp_path, monkeypatch):
    table = localization.compared(PLANT, METHODS, tmp_path, images=4, steps=1)
    assert list(table["pair"]) == [PLANT]
    assert 0 < table["rows"][0] < 0.5
    monkeypatch.setattr(localization, "opened", lambda *_: pytest.fail("nothing is left to do"))
    again = localization.compared(PLANT, METHODS, tmp_path, images=4, steps=1)
    pd.testing.assert_frame_equal(again, table.reset_index(drop=True), check_dtype=False)


def test_tables_have_a_row_for_each_method_and_one_for_the_sweep(tmp_path):
    table = localization.compared(PLANT, METHODS, tmp_path, images=4, steps=1)
    found = localization.summary(pd.concat([table, table.assign(pair="sdxl/layer/0"), table.assign(pair="sd1-natural style share")]))
    assert list(found.index) == ["attention", "all windows, again"]
    assert list(found["pairs"]) == [3, 3]


def test_every_pair_is_named_once_and_can_be_chosen():
    every = localization.names()
    assert len(every) == len(set(every)) == 14 * 10 + 3 + 4 * 3  # families and plants, pooled texts, trained models and attributes
    assert len(localization.names(13)) == 208
    assert not set(localization.names(2)) & set(every)
