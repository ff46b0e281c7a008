"""What every editing method must satisfy. A new method needs one line in EXAMPLES."""

import ast
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from neuroscope import Concept, ContextMap, HookGraph, InvalidInput, LocoEdit, edit, fold, load, save
from tests.families import tiny
from tests.laws.members import methods_in

LAYERS = (8, 9)
EXAMPLES: dict[type, list[LocoEdit]] = {
    LocoEdit: [LocoEdit(), LocoEdit(tokens=("subject", "eos"), preserve=("",), ridge=0.1), LocoEdit(roles="value")]
}
METHODS = [pytest.param(method, id=repr(method)) for methods in EXAMPLES.values() for method in methods]


def test_every_method_has_an_example():
    assert [each for each in methods_in("editing") if not hasattr(each, "__enter__")] == sorted(EXAMPLES, key=lambda each: each.__name__)


@pytest.fixture
def graph(fresh) -> HookGraph:
    """A model that a test may fold into."""
    return HookGraph(fresh)


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_its_repr_makes_it_again_and_it_cannot_be_changed(self, method):
        call = ast.parse(repr(method), mode="eval").body
        assert type(method)(**{each.arg: ast.literal_eval(each.value) for each in call.keywords}) == method
        with pytest.raises(FrozenInstanceError):
            method.ridge = 1.0

    def test_it_edits_the_asked_layers_and_leaves_the_model_alone(self, method, graph, concept):
        before = {name: value.clone() for name, value in graph.pipe.unet.state_dict().items()}
        made = edit(graph, concept, method, LAYERS)
        assert set(made.paths) == set(graph.sites.where(layer=LAYERS, role=method.roles).paths)
        assert all(torch.equal(value, before[name]) for name, value in graph.pipe.unet.state_dict().items())
        assert tiny.hooks(graph.pipe) == []

    def test_the_same_concept_gives_the_same_edit_to_the_bit(self, method, graph, concept):
        one, other = (edit(graph, concept, method, LAYERS).to_parts()[0] for _ in range(2))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    def test_saved_and_loaded_it_is_the_same(self, method, graph, concept, tmp_path):
        made = edit(graph, concept, method, LAYERS)
        again = load(save(made, tmp_path / "edit.safetensors"), ContextMap)
        assert again.to_parts()[1] == made.to_parts()[1]
        assert all(torch.equal(tensor, again.to_parts()[0][name]) for name, tensor in made.to_parts()[0].items())

    def test_it_changes_images_and_folding_it_gives_the_same(self, method, graph, concept):
        made = edit(graph, concept, method, LAYERS)
        plain = tiny.draw(graph.pipe)
        with graph.apply(made):
            applied = tiny.draw(graph.pipe)
        with fold(graph, made):
            folded = tiny.draw(graph.pipe)
        assert not torch.equal(applied, plain)
        torch.testing.assert_close(folded, applied, rtol=0, atol=1e-3)
        assert torch.equal(tiny.draw(graph.pipe), plain)

    def test_the_order_of_the_prompts_does_not_matter(self, method, graph, concept):
        """Up to rounding: the images of both edits are the same."""
        turned = Concept(concept.name, concept.present[::-1], concept.absent[::-1])
        images = []
        for each in (concept, turned):
            with graph.apply(edit(graph, each, method, LAYERS)):
                images.append(tiny.draw(graph.pipe))
        torch.testing.assert_close(*images, rtol=0, atol=1e-3)

    def test_nothing_to_edit_is_refused(self, method, graph, concept):
        with pytest.raises(InvalidInput, match="there are no layers to edit"):
            edit(graph, concept, method, [])
        with pytest.raises(InvalidInput, match="role 'none' is unknown|'none' is unknown"):
            edit(graph, concept, replace(method, roles="none"), LAYERS)
