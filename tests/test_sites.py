import pytest

from neuroscope import InvalidInput, Site, Sites, UnknownSite


def site(layer: int, role: str, width: int = 4) -> Site:
    block = "mid" if layer == 1 else f"up.{layer}"
    return Site(f"unet.block{layer}.{role}", layer, block, role, width, text_only=role in ("key", "value"))


ROLES = ("query", "key", "value")
SITES = Sites(site(layer, role, width=4 + layer) for layer in (2, 0, 1) for role in ROLES)


def test_the_order_given_is_kept_and_layers_are_sorted():
    assert [each.layer for each in SITES] == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    assert SITES.layers == (0, 1, 2)
    assert SITES.paths[0] == "unet.block2.query"
    assert SITES.neuron_count == 3 * (4 + 5 + 6)


def test_sites_are_a_sequence_that_compares_by_value():
    assert SITES[0] == site(2, "query", 6)
    assert isinstance(SITES[:3], Sites)
    assert SITES[:3] == Sites(list(SITES)[:3])
    assert hash(SITES[:3]) == hash(Sites(list(SITES)[:3]))
    assert SITES[:3] != SITES[:2]
    assert SITES != list(SITES)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"layer": 1}, lambda each: each.layer == 1),
        ({"layer": [0, 2]}, lambda each: each.layer in (0, 2)),
        ({"role": "key"}, lambda each: each.role == "key"),
        ({"role": ["key", "value"], "layer": 2}, lambda each: each.role != "query" and each.layer == 2),
        ({"block": "up.*"}, lambda each: each.layer != 1),
        ({"text_only": False}, lambda each: each.role == "query"),
        ({"path": "*block1*"}, lambda each: each.layer == 1),
        ({}, lambda each: True),
    ],
)
def test_where_keeps_what_fits_every_condition_in_order(condition, expected):
    assert list(SITES.where(**condition)) == [each for each in SITES if expected(each)]


def test_at_gives_execution_order_whatever_order_is_asked_for():
    assert SITES.at(reversed(SITES.paths[:4])) == SITES[:4]


def test_module_path_is_the_path_without_component_and_input_mark():
    plain = Site("unet.mid_block.attn2.to_out.0", 0, "mid", "output", 4, text_only=False)
    before = Site("unet.mid_block.attn2.to_out.0:input", 0, "mid", "heads", 4, text_only=False)
    assert plain.module == before.module == "mid_block.attn2.to_out.0"
    assert (plain.before_module, before.before_module) == (False, True)


def test_the_table_has_one_row_a_site():
    table = SITES.to_frame()
    assert list(table.columns) == ["path", "layer", "block", "role", "width", "text_only"]
    assert list(table["path"]) == list(SITES.paths)
    assert list(Sites([]).to_frame().columns) == list(table.columns)


def test_the_repr_counts():
    assert repr(SITES) == "Sites(9 sites in 3 layers: query, key, value; 45 neurons)"
    assert "none" in repr(Sites([]))


def test_a_path_may_be_given_once():
    with pytest.raises(InvalidInput, match="2 sites share 1 path; every path must be given once"):
        Sites([site(0, "key"), site(0, "key")])


def test_an_unknown_role_or_layer_is_refused():
    with pytest.raises(InvalidInput, match=r"role 'vlaue' is unknown; .*did you mean 'value'\?"):
        SITES.where(role="vlaue")
    with pytest.raises(InvalidInput, match="layer 7 is unknown; these sites have layers 0 to 2"):
        SITES.where(layer=[1, 7])
    with pytest.raises(InvalidInput, match="layer 0 is unknown; these sites have layers none"):
        Sites([]).where(layer=0)


def test_unknown_sites_are_named_with_a_near_one():
    with pytest.raises(UnknownSite, match=r"^the model has no site unet.block0.keyy; did you mean 'unet.block0.key'\?") as caught:
        SITES.at(["unet.block0.keyy"])
    assert not str(caught.value).startswith("'")


def test_many_unknown_sites_are_counted():
    with pytest.raises(UnknownSite, match="has no site a, b, c and 2 more"):
        SITES.at(list("abcde"))


def test_the_message_about_unknown_sites_is_made_of_sentences():
    with pytest.raises(UnknownSite, match="no site zzz; `neuroscope sites` lists all"):
        SITES.at(["zzz"])


def test_expect_returns_the_sites_or_says_what_it_found():
    assert SITES.expect(9) is SITES
    with pytest.raises(InvalidInput, match="expected 2 sites and found 3: unet.block2.query, unet.block2.key, unet.block2.value"):
        SITES[:3].expect(2)
    with pytest.raises(InvalidInput, match="expected 1 site and found 0: none"):
        Sites([]).expect(1)
