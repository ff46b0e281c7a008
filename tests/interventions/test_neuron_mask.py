from dataclasses import replace

import pytest
import torch

from neuroscope import Call, InvalidInput, NeuronMask, Neurons, Provenance, UnknownSite
from neuroscope.core.conditions import PLAIN
from tests.families import tiny


@pytest.fixture
def value(graph):
    return graph.sites.where(layer=8, role="value")[0]


@pytest.fixture
def key(graph):
    return graph.sites.where(layer=8, role="key")[0]


def mask_of(site, chosen, *arguments, **options) -> NeuronMask:
    return NeuronMask(Neurons({site.path: chosen}, {site.path: site.width}), *arguments, **options)


def drawn_with(graph, *masks, **options) -> torch.Tensor:
    with graph.apply(*masks):
        return tiny.draw(graph.pipe, **options)


def captured_with(graph, mask, site, **options) -> torch.Tensor:
    with graph.apply(mask), graph.capture([site]) as captured:
        tiny.draw(graph.pipe, **options)
    return captured[site.path]


@pytest.fixture
def before(graph, value):
    with graph.capture([value]) as captured:
        tiny.draw(graph.pipe)
    return captured[value.path]


class TestAgainstTheWeights:
    """Zero in all rows is the same as weights of zero."""

    CHOSEN = (0, 5, 31)

    def test_zeroed_values_are_zeroed_rows_of_the_value_projection(self, graph, fresh, value, untouched):
        found = drawn_with(graph, mask_of(value, self.CHOSEN, rows="all"))
        with torch.no_grad():
            fresh.unet.get_submodule(value.module).weight[list(self.CHOSEN)] = 0
        assert torch.equal(found, tiny.draw(fresh))
        assert not torch.equal(found, untouched)

    def test_zeroed_keys_are_zeroed_rows_of_the_query_projection(self, graph, fresh, key):
        found = drawn_with(graph, mask_of(key, self.CHOSEN, rows="all"))
        with torch.no_grad():
            fresh.unet.get_submodule(key.module.replace("to_k", "to_q")).weight[list(self.CHOSEN)] = 0
        torch.testing.assert_close(found, tiny.draw(fresh), rtol=1e-5, atol=1e-5)

    def test_zeroed_hidden_neurons_are_zeroed_columns_behind_them(self, graph, fresh):
        (site,) = graph.sites.where(layer=8, role="feedforward")
        found = drawn_with(graph, mask_of(site, self.CHOSEN, rows="all"))
        with torch.no_grad():
            fresh.unet.get_submodule(site.module.replace("ff.net.0", "ff.net.2")).weight[:, list(self.CHOSEN)] = 0
        torch.testing.assert_close(found, tiny.draw(fresh), rtol=1e-5, atol=1e-5)

    def test_zeroed_heads_are_zeroed_columns_of_the_output_projection(self, graph, fresh):
        (site,) = graph.sites.where(layer=8, role="heads")
        found = drawn_with(graph, mask_of(site, self.CHOSEN, rows="all"))
        with torch.no_grad():
            fresh.unet.get_submodule(site.module).weight[:, list(self.CHOSEN)] = 0
        torch.testing.assert_close(found, tiny.draw(fresh), rtol=1e-5, atol=1e-5)


class TestWhatKeysCanDo:
    def test_a_key_of_zero_is_a_query_of_zero(self, graph, key, untouched):
        (query,) = graph.sites.where(layer=8, role="query")
        keys, queries = (drawn_with(graph, mask_of(site, [4, 9], rows="all")) for site in (key, query))
        torch.testing.assert_close(keys, queries, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(keys, untouched, rtol=1e-4, atol=1e-4)

    def test_a_constant_on_every_token_is_a_key_of_zero(self, graph, key):
        """The softmax over tokens does not see what all of them share."""
        zero, constant = (drawn_with(graph, mask_of(key, range(0, 32, 2), fill=fill)) for fill in (0.0, 3.0))
        assert (constant - zero).norm() < 1e-5 * zero.norm()

    def test_a_constant_on_one_token_is_not(self, graph, key):
        zero, constant = (drawn_with(graph, mask_of(key, range(0, 32, 2), fill=fill, tokens=(3,))) for fill in (0.0, 3.0))
        assert (constant - zero).norm() > 1e-4 * zero.norm()


class TestFill:
    @pytest.mark.parametrize("strength", [0.25, 1.0, 2.0, -1.0])
    def test_chosen_neurons_move_by_the_strength_towards_the_fill(self, graph, value, before, strength):
        fill = torch.linspace(-3, 3, value.width)
        after = captured_with(graph, mask_of(value, [2, 7], {value.path: fill}, strength=strength), value)
        expected = before.clone()
        expected[:, 1, :, [2, 7]] += strength * (fill[[2, 7]] - before[:, 1][..., [2, 7]])
        torch.testing.assert_close(after, expected)

    def test_a_whole_sites_values_and_the_chosen_ones_are_the_same_fill(self, value):
        fill = torch.randn(value.width)
        whole, chosen = (mask_of(value, [2, 7], {value.path: each}) for each in (fill, fill[[2, 7]]))
        assert torch.equal(whole.fill[value.path], chosen.fill[value.path])

    def test_the_absent_means_can_be_filled_in(self, graph, recording, value):
        mask = mask_of(value, [2, 7], recording.mean("absent"))
        after = captured_with(graph, mask, value)[:, 1][..., [2, 7]]
        expected = recording.mean("absent")[value.path][[2, 7]].float().to(after.dtype)  # masks hold float32
        torch.testing.assert_close(after, expected.expand_as(after))

    def test_it_does_not_follow_later_changes_of_the_given_tensor(self, value):
        fill = torch.zeros(2)
        mask = mask_of(value, [2, 7], {value.path: fill})
        fill += 1
        assert mask.fill[value.path].tolist() == [0, 0]

    def test_the_fill_follows_the_models_number_format(self, value):
        call = Call(value, step=0, steps=1, layout=PLAIN, project=torch.clone, read=torch.clone)
        edited = mask_of(value, [2], fill=0.3).on_output(torch.ones(2, 3, value.width, dtype=torch.bfloat16), call)
        assert edited.dtype == torch.bfloat16
        assert edited[0, 0, 2] == torch.tensor(0.3).bfloat16()


class TestTokens:
    @pytest.mark.parametrize(("tokens", "changed"), [((0, 5), {0, 5}), ((-1,), {23}), (None, set(range(24)))])
    def test_only_the_tokens_that_are_meant_change(self, graph, value, before, tokens, changed):
        after = captured_with(graph, mask_of(value, range(32), fill=9.0, tokens=tokens), value)
        differs = (after[0, 1] != before[0, 1]).any(dim=-1)
        assert set(differs.nonzero().flatten().tolist()) == changed

    @pytest.mark.parametrize("tokens", [(24,), (0, 99), (-25,), ()])
    def test_tokens_that_are_not_there_are_refused_before_any_picture(self, graph, pipe, value, tokens):
        with tiny.counted(pipe.unet) as calls, pytest.raises(InvalidInput, match="token"):
            drawn_with(graph, mask_of(value, [0], tokens=tokens))
        assert calls == []


def test_masks_of_different_neurons_commute_and_are_their_union(graph, value, key):
    first, second = Neurons.at(graph.sites, {value.path: [1, 2], key.path: [3]}), Neurons.at(graph.sites, {value.path: [5]})
    there = drawn_with(graph, NeuronMask(first, fill=1.0), NeuronMask(second, fill=1.0))
    back = drawn_with(graph, NeuronMask(second, fill=1.0), NeuronMask(first, fill=1.0))
    union = drawn_with(graph, NeuronMask(first | second, fill=1.0))
    assert torch.equal(there, back)
    assert torch.equal(there, union)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": {}}, r"the mask has no neuron; choose at least one, such as scores.top\(50\)"),
        ({"rows": "conditionl"}, r"rows 'conditionl' is unknown; choose one of conditional, all; did you mean 'conditional'\?"),
        ({"steps": (0.5, 0.2)}, r"steps=\(0.5, 0.2\) is not a part of the schedule; give two fractions in order, such as \(0.0, 0.5\)"),
        ({"steps": (0.5, 0.5)}, "is not a part of the schedule"),
        ({"steps": (0, 20)}, "is not a part of the schedule"),
        ({"steps": (0.0, 0.5, 1.0)}, "is not a part of the schedule"),
        ({"fill": {}}, "the fill has no values for a; it has none"),
        ({"fill": {"b": torch.zeros(4)}}, "the fill has no values for a; it has b"),
        ({"fill": {"a": torch.zeros(3)}}, r"the fill of a has shape \(3,\); give \[4\] or, for the chosen neurons, \[2\]"),
        ({"fill": {"a": torch.full((4,), torch.nan)}}, "the fill of a holds NaN or infinity; record again in a wider number format"),
    ],
)
def test_an_impossible_mask_is_refused(untyped, options, message):
    neurons = Neurons(options.pop("neurons", {"a": [0, 2]}), {"a": 4})
    with pytest.raises(InvalidInput, match=message):
        NeuronMask(neurons, **options)


def test_nan_in_neurons_that_are_not_chosen_does_no_harm():
    mask = NeuronMask(Neurons({"a": [0]}, {"a": 2}), fill={"a": torch.tensor([1.0, torch.nan])})
    assert mask.fill["a"].tolist() == [1.0]


class TestAnotherModelsMask:
    def test_another_family_is_named(self, graph, value):
        neurons = Neurons({value.path: [0]}, {value.path: value.width}, Provenance(family="a-transformer"))
        with pytest.raises(
            InvalidInput, match="the mask was made for the family a-transformer, and this model is of stable-diffusion-unet"
        ):
            NeuronMask(neurons).check(graph.spec)

    def test_sites_of_another_width_are_named_with_both_widths(self, graph):
        paths = graph.sites.where(role="value").paths[:5]
        with pytest.raises(UnknownSite, match=r"5 of its sites differ: .*to_v \(320 neurons in the mask, 32 in the model\), .* and 2 more"):
            NeuronMask(Neurons({path: [0] for path in paths}, dict.fromkeys(paths, 320))).check(graph.spec)

    def test_a_site_that_is_not_there_is_named_beside_those_that_are(self, graph, value):
        missing = value.path.replace("up_blocks.1", "up_blocks.7")
        widths = {value.path: value.width, missing: 32}
        with pytest.raises(UnknownSite, match=r"1 of its sites differ: .*up_blocks.7.* \(32 neurons in the mask, none in the model\)"):
            NeuronMask(Neurons({path: [0] for path in widths}, widths)).check(graph.spec)

    def test_if_no_site_fits_a_near_name_is_given(self, graph):
        path = "unet.up_blocks.1.attentions.1.attn2.to_v"
        with pytest.raises(UnknownSite, match=rf"the model has no site {path}; did you mean 'unet\.up_blocks\.1\..*attn2\.to_[kv]'\?"):
            NeuronMask(Neurons({path: [0]}, {path: 32})).check(graph.spec)

    def test_tokens_are_refused_where_tokenizers_do_not_agree(self, graph, value):
        spec = replace(graph.spec, token_count=None)
        mask = NeuronMask(Neurons({value.path: [0]}, {value.path: value.width}), tokens=(1,))
        mask.check(graph.spec)
        with pytest.raises(InvalidInput, match="tokenizers of this pipeline split text differently, .*; make the mask without"):
            mask.check(spec)
