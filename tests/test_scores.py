from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from neuroscope import Cost, Fidelity, InvalidInput, LayerScores, Neurons, NeuronScores, Provenance, Site, Sites, UnknownSite, load, save

SITES = Sites(
    Site(f"unet.{layer}.{role}", layer, "mid", role, width, text_only=True)
    for layer, role, width in ((0, "key", 4), (0, "value", 6), (1, "key", 4), (1, "value", 6), (2, "value", 3))
)


def scores_of(values: dict[str, list[float]], **options) -> NeuronScores:
    sites = SITES.at(values)
    return NeuronScores(sites, {path: torch.tensor(each, dtype=torch.float64) for path, each in values.items()}, **options)


@pytest.fixture
def scores() -> NeuronScores:
    rng = np.random.default_rng(0)
    values = {site.path: torch.from_numpy(rng.normal(size=site.width)) for site in SITES}
    p_values = {site.path: torch.from_numpy(rng.uniform(size=site.width) ** 3) for site in SITES}
    return NeuronScores(SITES, values, p_values, provenance=Provenance("family", "model", "stipple", "Some()"))


def flat(neurons: Neurons) -> set[tuple[str, int]]:
    return {(path, index) for path, chosen in neurons.items() for index in chosen}


def strongest(scores: NeuronScores, count: int, paths=SITES.paths) -> set[tuple[str, int]]:
    """A second implementation of `top`: numpy's stable sort of the strengths in site order."""
    places = [(path, index) for path in paths for index in range(len(scores.scores[path]))]
    strength = np.concatenate([np.abs(scores.scores[path].numpy() - scores.neutral) for path in paths])
    return {places[index] for index in np.argsort(-strength, kind="stable")[:count]}


class TestNeurons:
    def test_indices_are_sorted_and_counted_once_and_empty_sites_left_out(self):
        neurons = Neurons({"a": [3, 1, 3], "b": []}, {"a": 4, "b": 2})
        assert dict(neurons) == {"a": (1, 3)}
        assert (neurons.count, len(neurons), neurons.widths) == (2, 1, {"a": 4})
        assert repr(neurons) == "Neurons(2 neurons in 1 site)"

    @pytest.mark.parametrize(("operator", "combine"), [("__or__", set.union), ("__and__", set.intersection), ("__sub__", set.difference)])
    def test_the_algebra_is_that_of_sets(self, operator, combine):
        rng = np.random.default_rng(0)
        widths = {"a": 9, "b": 7, "c": 5}
        first, second = (
            Neurons({path: rng.permutation(widths[path])[:4].tolist() for path in paths}, widths) for paths in (("a", "b"), ("b", "c"))
        )
        found = getattr(first, operator)(second)
        assert flat(found) == combine(flat(first), flat(second))
        assert found.widths.items() <= widths.items()

    def test_a_result_of_the_algebra_keeps_the_first_ones_provenance(self):
        first = Neurons({"a": [0]}, {"a": 2}, Provenance(concept="x"))
        assert (first | Neurons({"a": [1]}, {"a": 2}, Provenance(concept="y"))).provenance.concept == "x"

    def test_widths_can_come_from_a_models_sites(self):
        neurons = Neurons.at(SITES, {"unet.2.value": [2], "unet.0.key": [3]})
        assert neurons.widths == {"unet.2.value": 3, "unet.0.key": 4}
        with pytest.raises(UnknownSite, match=r"has no site unet.2.valeu; did you mean 'unet.2.value'\?"):
            Neurons.at(SITES, {"unet.2.valeu": [0]})

    @pytest.mark.parametrize(("index", "widths", "message"), [
        (-1, {"a": 4}, "neuron -1 is outside a, whose neurons are 0 to 3"),
        (4, {"a": 4}, "neuron 4 is outside a, whose neurons are 0 to 3"),
        (0, {}, r"the width of a is not given; pass widths=\{path: number of neurons\}"),
    ])  # fmt: skip
    def test_an_index_outside_its_site_is_refused(self, index, widths, message):
        with pytest.raises(InvalidInput, match=message):
            Neurons({"a": [1, index]}, widths)

    def test_neurons_of_models_with_other_widths_do_not_combine(self):
        with pytest.raises(InvalidInput, match="a has 4 neurons here and 5 there; combine neurons of one model"):
            Neurons({"a": [0]}, {"a": 4}) | Neurons({"a": [0]}, {"a": 5})


class TestTop:
    @pytest.mark.parametrize("count", [1, 2, 7, 23])
    def test_overall_it_is_the_stable_sort_of_strengths(self, scores, count):
        assert flat(scores.top(count)) == strongest(scores, count)

    def test_in_each_layer_or_site_it_is_the_top_of_that_group(self, scores):
        by_site = set().union(*(strongest(scores, 2, [path]) for path in SITES.paths))
        by_layer = set().union(*(strongest(scores, 2, SITES.where(layer=layer).paths) for layer in SITES.layers))
        assert flat(scores.top(2, per="site")) == by_site
        assert flat(scores.top(2, per="layer")) == by_layer

    def test_ties_go_to_the_earlier_site_and_then_to_the_lower_index(self):
        tied = scores_of({"unet.1.key": [1, 2, -2, 2], "unet.0.key": [2, 0, 2, 2]})
        order = [("unet.0.key", 0), ("unet.0.key", 2), ("unet.0.key", 3), ("unet.1.key", 1), ("unet.1.key", 2), ("unet.1.key", 3)]
        for count in range(1, len(order) + 1):
            assert flat(tied.top(count)) == set(order[:count])
        table = tied.to_frame().head(len(order))
        assert list(zip(table["site"], table["neuron"], strict=True)) == order

    def test_only_the_side_that_counts_counts(self):
        values = {"unet.0.key": [-5.0, 1.0, 2.0, 0.0]}
        assert flat(scores_of(values).top(1)) == {("unet.0.key", 0)}
        assert flat(scores_of(values, two_sided=False).top(1)) == {("unet.0.key", 2)}
        assert flat(scores_of(values, neutral=-5.0).top(1)) == {("unet.0.key", 2)}

    @pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
    def test_scores_that_are_not_finite_are_refused(self, bad):
        with pytest.raises(InvalidInput, match="scores of unet.0.key holds NaN or infinity"):
            scores_of({"unet.0.key": [0.0, bad, 9.0, 1.0]})

    def test_the_neurons_keep_widths_and_provenance(self, scores):
        top = scores.top(23)
        assert top.widths == {site.path: site.width for site in SITES}
        assert top.provenance == scores.provenance

    @pytest.mark.parametrize(
        ("count", "per", "largest"), [(0, "all", 23), (24, "all", 23), (11, "layer", 10), (7, "site", 6), (-1, "site", 6)]
    )
    def test_more_than_there_are_is_refused(self, scores, count, per, largest):
        with pytest.raises(InvalidInput, match=rf"top\({count}\) is not possible here; choose from 1 to {largest}"):
            scores.top(count, per)

    def test_an_unknown_group_is_refused(self, scores, untyped):
        with pytest.raises(InvalidInput, match=r"per 'layers' is unknown; choose one of all, layer, site; did you mean 'layer'\?"):
            scores.top(1, "layers")


def test_q_values_are_the_false_discovery_rates_of_all_neurons_together(scores):
    every = np.concatenate([scores.p_values[path] for path in SITES.paths])
    expected = [min(1, min(p * len(every) / np.sum(every <= p) for p in every if p >= each)) for each in every]
    found = np.concatenate([scores.q_values()[path] for path in SITES.paths])
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(found, scipy.stats.false_discovery_control(every))


def test_the_table_is_tidy_and_strongest_first(scores):
    table = scores.to_frame()
    assert list(table.columns) == ["layer", "role", "neuron", "score", "stderr", "p_value", "q_value", "rank", "site"]
    assert list(table["rank"]) == list(range(1, SITES.neuron_count + 1))
    assert table["score"].abs().is_monotonic_decreasing
    assert not table.duplicated(["site", "neuron"]).any()
    q_values = scores.q_values()
    for row in table.itertuples():
        assert row.score == scores.scores[row.site][row.neuron]
        assert row.p_value == scores.p_values[row.site][row.neuron]
        assert row.q_value == q_values[row.site][row.neuron]
        assert (row.layer, row.role) == (SITES.at([row.site])[0].layer, SITES.at([row.site])[0].role)


def test_without_a_test_there_are_no_p_values():
    scores = scores_of({"unet.0.key": [1.0, 2.0, 3.0, 4.0]})
    assert scores.q_values() == {}
    assert scores.to_frame()[["stderr", "p_value", "q_value"]].isna().all(axis=None)


def test_standard_errors_are_kept_checked_and_shown(scores, tmp_path):
    stderr = {path: each.abs() for path, each in scores.scores.items()}
    known = replace(scores, stderr=stderr)
    for row in known.to_frame().itertuples():
        assert row.stderr == stderr[row.site][row.neuron]
    again = load(save(known, tmp_path / "x.safetensors"), NeuronScores)
    assert all(torch.equal(again.stderr[path], each) for path, each in stderr.items())
    with pytest.raises(InvalidInput, match="a standard error is below 0; give 0 or more"):
        replace(scores, stderr={path: each - 10 for path, each in stderr.items()})
    with pytest.raises(InvalidInput, match="stderr and sites differ in "):
        replace(scores, stderr={SITES.paths[0]: stderr[SITES.paths[0]]})


def test_layers_score_the_mean_strength_of_their_neurons(scores):
    layers = scores.by_layer()
    for layer, found in zip(layers.layers, layers.scores, strict=True):
        expected = np.concatenate([scores.scores[site.path] for site in SITES if site.layer == layer])
        assert found == pytest.approx(np.abs(expected).mean())
    assert layers.provenance == Provenance("family", "model", "stipple", "mean of Some()")


def test_agreement_is_spearmans_correlation_of_strengths(scores):
    other = NeuronScores(SITES, {path: each**3 + 0.1 for path, each in scores.scores.items()})
    ranks = [scipy.stats.rankdata(np.abs(np.concatenate([each.scores[path] for path in SITES.paths]))) for each in (scores, other)]
    assert scores.agreement(other) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores.agreement(NeuronScores(SITES, {path: -2 * each for path, each in scores.scores.items()})) == pytest.approx(1)


def test_agreement_needs_the_same_sites(scores):
    with pytest.raises(InvalidInput, match="agreement needs scores of the same sites, not 5 and 1 different ones"):
        scores.agreement(scores_of({"unet.0.key": [1.0, 2.0, 3.0, 4.0]}))


def test_the_repr_says_what_was_scored_how(scores):
    assert repr(scores) == "NeuronScores('stipple' by Some(): 23 neurons in 5 sites)"


def test_the_best_layers_come_first_and_ties_go_to_the_earlier():
    layers = LayerScores((0, 1, 2, 3), (0.5, 0.9, 0.5, 0.9))
    assert layers.top(4) == [1, 3, 0, 2]
    names = ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert layers.to_frame().to_dict("list") == {"layer": [0, 1, 2, 3], "name": names, "score": [0.5, 0.9, 0.5, 0.9]}
    for count in (0, 5):
        with pytest.raises(InvalidInput, match=rf"top\({count}\) is not possible here; choose from 1 to 4"):
            layers.top(count)


def test_fidelity_and_cost_are_said_and_kept_and_scores_without_them_are_read(scores, tmp_path):
    found = replace(scores, fidelity=Fidelity(0.8, 0.4, 0.9, 8), cost=Cost(54, 1.5, 2**30))
    ending = "23 neurons in 5 sites; rank correlation with exact effects 0.80 [0.40, 0.90] over 8 random neurons; 54 NFE, 1.5 s"
    assert ending in repr(found)
    again = load(save(found, tmp_path / "scores.safetensors"), NeuronScores)
    assert (again.fidelity, again.cost) == (found.fidelity, found.cost)
    plain = load(save(scores, tmp_path / "scores.safetensors"), NeuronScores)
    assert (plain.fidelity, plain.cost) == (None, None)
