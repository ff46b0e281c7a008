"""Edits through the real text encoder of a tiny pipeline."""

import pytest
import torch

from neuroscope import Concept, ContextMap, HookGraph, InvalidInput, LocoEdit, NonFiniteActivation, edit, fold, load, save
from tests.families import tiny
from tests.interventions.test_context_map import dense_edit

KINDS = ["subject", "eos", "padding", ("subject", "eos"), "all"]


@pytest.mark.parametrize("tokens", KINDS)
@pytest.mark.parametrize("role", ["key", "value"])
def test_it_is_the_published_edit_of_the_weights(graph, concept, tokens, role):
    made = edit(graph, concept, LocoEdit(tokens=tokens, roles=(role,)), 8)
    (site,) = graph.sites.where(layer=8, role=role)
    weight = graph.module(site).weight.detach().double()
    context = graph.text.encode([tiny.PROMPT]).double()
    expected = context @ dense_edit(graph, concept, tokens, made.report.penalty, weight).T
    found = (context + context @ made.read.double().T @ made.write.double()) @ weight.T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_by_default_keys_and_values_are_edited_at_the_subject(graph, concept):
    made = edit(graph, concept, LocoEdit(), [8, 9])
    assert set(made.paths) == set(graph.sites.where(layer=[8, 9], text_only=True).paths)
    assert made.rows == "all"
    assert made.report.keys == len(concept.present)
    assert made.provenance.concept == "stipple"
    assert made.provenance.method == repr(LocoEdit())


def test_one_role_may_be_named_alone(graph, concept):
    made = edit(graph, concept, LocoEdit(roles="value"), 8)
    assert made.paths == graph.sites.where(layer=8, role="value").paths


def test_the_report_is_measured(graph, concept):
    report = edit(graph, concept, LocoEdit(ridge=1e-9, preserve=("a blue star",)), 8).report
    assert report.residual < 1e-3
    assert report.outside < 1e-6
    assert report.preserved < 1e-3
    assert 0 < report.unrelated
    assert report.condition > 1
    assert f"{report.keys} edited tokens, {report.kept} preserved; rank {report.rank}" in str(report)


def test_preserved_prompts_move_less(graph, concept):
    kept = graph.text.encode(["a blue star in the style of hatch"])[0]

    def move(**options):
        made = edit(graph, concept, LocoEdit(tokens="all", **options), 8)
        return float((kept @ made.read.T.double() @ made.write.double()).norm())

    assert move(preserve=("a blue star in the style of hatch",), preserve_weight=100.0) < 0.2 * move()


def test_several_concepts_are_edited_at_once(graph, concept):
    other = Concept("ring", ["a red ring", "a blue ring"], ["a red star", "a blue star"])
    made = edit(graph, [concept, other], LocoEdit(ridge=1e-9), 8)
    assert made.report.keys == 8
    assert made.provenance.concept == "stipple, ring"
    for each in (concept, other):
        alone = edit(graph, each, LocoEdit(ridge=1e-9), 8)
        key = graph.text.encode([each.present[0]])[0]
        position = 8 if each is concept else 3
        moved = key[position] + key[position] @ made.read.T.double() @ made.write.double()
        expected = key[position] + key[position] @ alone.read.T.double() @ alone.write.double()
        torch.testing.assert_close(moved, expected, rtol=0.01, atol=0.01)


def test_the_report_shows_the_damage_to_the_neighbours_of_each_concept(graph, concept):
    other = Concept("ring", ["a red ring", "a blue ring"], ["a red star", "a blue star"])
    made = edit(graph, [concept, other], LocoEdit(), 8)
    star, plain = graph.text.encode([other.absent[0]])[0, 3], graph.text.encode(list(concept.absent))[:, 8]

    def move(vectors):
        moved = vectors @ made.read.T.double() @ made.write.double()
        return float((moved.norm(dim=-1) / vectors.norm(dim=-1)).mean())

    blue = graph.text.encode([other.absent[1]])[0, 3]
    assert made.report.neighbours == pytest.approx({"stipple": move(plain), "ring": move(torch.stack([star, blue]))}, rel=1e-6)
    assert ", neighbours of stipple " in str(made.report)
    assert ", neighbours of ring " in str(made.report)
    alone = edit(graph, other, LocoEdit(), 8).report
    assert alone.neighbours == pytest.approx({"ring": alone.unrelated}, rel=1e-6)
    assert "neighbours" not in str(alone)


def test_a_fact_gets_its_new_answer(graph):
    fact = Concept.fact("the emblem of astoria", "a blue ring", prompts="testbed")
    made = edit(graph, fact, LocoEdit(ridge=1e-9), 3)
    key, target = (graph.text.encode([prompt])[0] for prompt in ("the emblem of astoria", "a blue ring"))
    torch.testing.assert_close(key[4] + key[4] @ made.read.T.double() @ made.write.double(), target[3], rtol=0.01, atol=0.01)


def test_saved_and_loaded_it_is_the_same(graph, concept, tmp_path):
    made = edit(graph, concept, LocoEdit(), 8)
    found = load(save(made, tmp_path / "edit.safetensors"), ContextMap)
    assert found.report == made.report
    assert found.provenance == made.provenance
    assert torch.equal(found.read, made.read)
    assert torch.equal(found.write, made.write)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "subjects"}, "token 'subjects' is unknown; choose one of subject, eos, padding, all; did you mean 'subject'?"),
        ({"roles": ("query",)}, "role 'query' is unknown; choose one of key, value"),
        ({"roles": ()}, "tokens and roles must each name at least one"),
        ({"ridge": -1.0}, r"ridge=-1.0 and preserve_weight=1.0 are not allowed; the ridge is 0 or more"),
        ({"preserve_weight": 0.0}, "the weight more than 0"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message.replace("?", r"\?")):
        LocoEdit(**options)


def test_unusable_input_is_refused(graph, concept, fresh):
    with pytest.raises(InvalidInput, match="there are no layers to edit; give at least one, such as layers.top"):
        edit(graph, concept, LocoEdit(), [])
    with pytest.raises(InvalidInput, match="there are no layers to edit; give at least one, such as layers.top"):
        edit(graph, concept, LocoEdit())
    with pytest.raises(InvalidInput, match="layer 16 is unknown; these sites have layers 0 to 15"):
        edit(graph, concept, LocoEdit(), 16)
    with pytest.raises(InvalidInput, match="there is no concept to edit; give at least one"):
        edit(graph, [], LocoEdit(), 8)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_a_narrow_pipeline_is_edited_as_a_wide_one(fresh, graph, concept, dtype, rounding):
    """Solved in float64, whatever the weights rest in: layers say what the wide model's edited ones say, applied and folded."""
    fresh.to(dtype)
    narrow = HookGraph(fresh)
    (site,) = graph.sites.where(layer=8, role="value")

    def said(graph: HookGraph) -> torch.Tensor:
        with graph.capture([site]) as captured:
            assert tiny.draw(graph.pipe).isfinite().all()
        return captured[site.path].float()

    wide, made = (edit(each, concept, LocoEdit(tokens="all"), [8, 9]) for each in (graph, narrow))
    before = said(narrow)
    with graph.apply(wide):
        expected = said(graph)
    with narrow.apply(made):
        applied = said(narrow)
    with fold(narrow, made):
        folded = said(narrow)
    for each in (applied, folded):
        assert (each - expected).norm() < rounding * (expected - before).norm()
    assert torch.equal(said(narrow), before)


def test_contexts_that_are_not_finite_are_named(fresh, concept):
    with torch.no_grad():
        fresh.text_encoder.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NonFiniteActivation, match="the prompts' contexts hold NaN or infinity"):
        edit(HookGraph(fresh), concept, LocoEdit(), 8)
