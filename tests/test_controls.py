from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from neuroscope import Auroc, HookGraph, InvalidInput, MeanDifference, NullTest, Recording, WeightedNorm, Welch, null_test, record
from tests.families import tiny
from tests.laws.recordings import recording_of

PROMPTS, WIDTH, HEADS = 12, 24, {"unet.a": 3}
WELCH = Welch()


def observations(seed: int, effect: Tensor | float = 0.0) -> Recording:
    """Isotropic noise in both arms, and an effect [neuron] in the present one."""
    present, absent = torch.randn(2, PROMPTS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return recording_of({"unet.a": present + effect}, {"unet.a": absent})


def few_neurons() -> Tensor:
    """An effect on one neuron of each head."""
    effect = torch.zeros(WIDTH, dtype=torch.float64)
    effect[[2, 9, 20]] = 2.5
    return effect


def turned(effect: Tensor, seed: int = 0) -> Tensor:
    """The effect in a random basis of each head."""
    turns = scipy.stats.ortho_group(8, seed=seed).rvs(3)
    return torch.from_numpy(np.einsum("hn,hnm->hm", effect.reshape(3, 8).numpy(), turns).reshape(-1))


def against(recording: Recording, null: str, method=WELCH, **options) -> NullTest:
    return null_test(recording, method, null, **({"top": 3, "heads": HEADS, "draws": 99, "quiet": True} | options))


@pytest.mark.parametrize("null", ["rotated", "permuted"])
def test_where_there_is_nothing_to_find_chances_are_uniform(null):
    """Kolmogorov and Smirnov's test, of recordings without a concept (whose noise is the same in every basis)."""
    chances = [against(observations(seed), null, draws=39, seed=seed).p_value for seed in range(60)]
    assert scipy.stats.kstest(np.array(chances) - 1 / 80, "uniform").pvalue > 0.01


@pytest.mark.parametrize("method", [Welch(), MeanDifference(), Auroc()])
def test_a_concept_that_is_in_a_few_neurons_exceeds_both_nulls(method):
    for null in ("rotated", "permuted"):
        found = against(observations(0, few_neurons()), null, method)
        assert found.p_value == 0.01
        assert found.excess > 0
        assert found.low <= found.expected <= found.high < found.observed


def test_a_concept_that_is_in_directions_alone_exceeds_permuted_labels_but_no_rotated_basis():
    effect = few_neurons()
    chances = [against(observations(seed, turned(effect, seed)), "rotated", draws=39, seed=seed).p_value for seed in range(40)]
    assert scipy.stats.kstest(np.array(chances) - 1 / 80, "uniform").pvalue > 0.01
    assert against(observations(0, turned(effect)), "permuted").p_value == 0.01


def test_what_is_observed_is_the_share_of_strength_or_its_mean():
    recording = observations(0, few_neurons())
    present, absent = (recording.samples[arm]["unet.a"].double().numpy() for arm in ("present", "absent"))
    strengths = np.sort(np.abs(scipy.stats.ttest_ind(present, absent, equal_var=False).statistic))[::-1]
    assert against(recording, "rotated").observed == pytest.approx(strengths[:3].sum() / strengths.sum())
    assert against(recording, "permuted").observed == pytest.approx(strengths[:3].mean())


def test_a_rotation_stays_in_its_head_and_keeps_lengths():
    """An effect in one head only must not be spread over others: their share is what noise has."""
    effect = torch.zeros(WIDTH, dtype=torch.float64)
    effect[:8] = 100.0
    found = against(observations(0, effect), "rotated", MeanDifference(), top=8)
    assert found.low > 0.9
    assert against(observations(0, effect), "rotated", MeanDifference(), top=8, heads={"unet.a": 1}).high < 0.9


def test_arms_of_unequal_size_are_dealt_anew():
    recording = recording_of({"unet.a": torch.randn(9, 5).double() + 3}, {"unet.a": torch.randn(6, 5).double()})
    assert against(recording, "permuted", heads=None).p_value == 0.01


def test_the_same_seed_draws_the_same():
    recording = observations(0)
    for null in ("rotated", "permuted"):
        assert against(recording, null) == against(recording, null)
        assert against(recording, null) != against(recording, null, seed=1)


def test_it_says_itself_in_one_line():
    found = NullTest(0.41, 0.12, 0.1, 0.14, 0.005, 28, "rotated", 199)
    assert str(found) == "top 28 hold 41 % of the strength; rotated bases 12 % [10, 14]; excess 29 points, p < 0.01"
    found = NullTest(7.1, 2.3, 2.0, 2.75, 0.034, 28, "permuted", 199)
    assert str(found) == "top 28 have mean strength 7.1; permuted labels 2.3 [2, 2.8]; excess 4.8, p = 0.03"


@pytest.mark.parametrize("family", list(tiny.PIPELINES))
def test_heads_are_those_of_the_models_attention(family):
    """Of every family: the heads of its attention processors' own reshaping, by the width of one head."""
    graph = HookGraph(tiny.PIPELINES[family]())
    sites = graph.sites.where(role=("key", "value"))
    widths = {site.path: site.width for site in sites}
    for path, heads in graph.heads(sites).items():
        attention = graph.denoiser.get_submodule(path.split(".", 1)[1].rpartition(".")[0])
        # the scale is one over the root of a head's width; some attentions have the torch function's own, by the width that they configure
        width = 1 / attention.scale**2 if hasattr(attention, "scale") else graph.denoiser.config.attention_head_dim
        assert heads == round(widths[path] / width)


def test_a_recording_of_a_pipeline_has_no_excess_over_rotated_bases_where_weights_are_random(graph, concept):
    sites = graph.sites.where(role="value")
    recording = record(graph, concept, sites, keep_samples=True, quiet=True)
    found = null_test(recording, MeanDifference(), top=50, heads=graph.heads(sites), draws=19, quiet=True)
    assert abs(found.excess) < 0.05


def test_a_site_without_heads_is_refused(graph):
    with pytest.raises(InvalidInput, match=r"ff.net.0 is not split into attention heads; choose keys, values or queries"):
        graph.heads(graph.sites.where(layer=8, role="feedforward"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"samples": {}}, {}, "nulls are drawn from single observations; record with keep_samples=True"),
        ({}, {"null": "rotate"}, "null 'rotate' is unknown; choose one of rotated, permuted"),
        ({}, {"top": 25}, "top=25 is not possible here; choose from 1 to 24"),
        ({}, {"top": 0}, "top=0 is not possible here; choose from 1 to 24"),
        ({}, {"draws": 0}, "draws=0 makes no null; give 1 or more, such as 200"),
        ({}, {"heads": None}, "the heads of unet.a are not given, within which to rotate; give heads=graph.heads"),
        ({}, {"heads": {"unet.b": 2}}, "the heads of unet.a are not given, within which to rotate; give heads=graph.heads"),
        ({}, {"heads": {"unet.a": 5}}, "unet.a has 24 neurons, which are not 5 heads of one size; give the model's"),
        (
            {},
            {"method": WeightedNorm()},
            r"WeightedNorm\(\) weighs neurons by their outgoing weights, whose rotation a recording does not hold",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(untyped, change, options, message):
    with pytest.raises(InvalidInput, match=message):
        against(replace(observations(0), **change), **({"null": "rotated"} | options))
