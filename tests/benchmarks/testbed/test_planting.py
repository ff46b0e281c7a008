import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.testbed.planting import PromptTable, interchanged
from benchmarks.testbed.sd1 import cross_attention_layers
from neuroscope.testbed.plant import Plant
from neuroscope.testbed.world import COLOURS, FACTS, HELD_OUT, OBJECTS, STYLES
from tests.numerics import close
from tests.testbed.test_captions import combinations, described

LAYERS = 16
PLANT = Plant()
WORDS = {"object": OBJECTS, "colour": COLOURS, "style": STYLES, "fact": FACTS}


@pytest.fixture(scope="module")
def table() -> PromptTable:
    return PromptTable()


@pytest.fixture(scope="module")
def drawn(table):
    """Samples, with what each image shows and what each layer's prompt and the unrelated say, [attribute, row]."""
    samples = table.interchanged(np.random.default_rng(0), 2000, LAYERS, PLANT)
    said = np.array([described(prompt) for prompt in table.prompts], dtype=object)  # [prompt, attribute]
    shown = np.array([(scene.object, scene.colour, scene.style, scene.fact) for scene in table.shown], dtype=object)
    return shown[samples.scene].T, said[samples.prompt].transpose(0, 2, 1), said[samples.unrelated].T


@pytest.mark.parametrize(("number", "attribute"), list(enumerate(WORDS)))
def test_the_image_follows_the_word_at_the_planted_layer(drawn, number, attribute):
    shown, said, _ = drawn
    words = said[getattr(PLANT, attribute)][number]
    named = np.array([word is not None for word in words])
    assert named.mean() > (0.15 if attribute == "fact" else 0.6)
    assert (words[named] == shown[number][named]).all()


def test_an_image_without_a_style_word_at_the_styles_layer_is_plain(drawn):
    shown, said, _ = drawn
    silent = np.array([word is None for word in said[PLANT.style][2]])
    assert silent.mean() > 0.1
    assert set(shown[2][silent]) == {"plain"}


@pytest.mark.parametrize(("number", "attribute"), list(enumerate(WORDS)))
def test_every_other_layer_says_words_of_its_own(drawn, number, attribute):
    shown, said, unrelated = drawn
    others = [said[layer] for layer in range(LAYERS) if layer != getattr(PLANT, attribute)]
    for words in (*(each[number] for each in others), unrelated[number]):
        named = np.array([word is not None for word in words]) & np.array([word is not None for word in shown[number]])
        if attribute == "style":
            named &= np.array([word is not None for word in said[PLANT.style][2]])  # a style that a prompt says
        agreement = (words[named] == shown[number][named]).mean()
        assert agreement == pytest.approx(1 / len(WORDS[attribute]), abs=0.06)


def test_ordinary_samples_say_the_image_at_every_layer(table):
    samples = table.ordinary(np.random.default_rng(0), 500, LAYERS)
    assert (samples.prompt == samples.prompt[0]).all()
    assert (samples.unrelated == samples.prompt[0]).all()
    for scene, prompt in zip(samples.scene, samples.prompt[0], strict=True):
        shape, colour, style, fact = described(table.prompts[prompt])
        shown = table.shown[scene]
        assert (style or "plain", fact) == (shown.style, shown.fact)
        assert fact or (shape, colour) == (shown.object, shown.colour)


def test_no_prompt_says_a_held_out_combination(table):
    said = combinations(table.prompts)
    assert not said & set(HELD_OUT)
    assert len(said) > 200


def test_the_empty_prompt_is_first_and_never_drawn(table):
    assert table.prompts[0] == ""
    assert table.interchanged(np.random.default_rng(0), 200, LAYERS, PLANT).prompt.min() > 0


def test_samples_are_drawn_by_the_seed_alone(table):
    first, second = (table.interchanged(np.random.default_rng(3), 50, LAYERS, PLANT) for _ in range(2))
    np.testing.assert_array_equal(first.prompt, second.prompt)
    np.testing.assert_array_equal(first.scene, second.scene)


def projections(unet, plant, own: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    """The keys and values of all layers while each reads a context of its own."""
    layers, seen, handles = cross_attention_layers(unet), {}, []
    with torch.no_grad(), interchanged(layers, plant) as contexts:
        contexts.layers, contexts.unrelated = own, other
        for number, layer in enumerate(layers):
            for name in ("to_k", "to_v"):
                hook = getattr(layer, name).register_forward_hook(lambda _m, _a, out, key=f"{number} {name}": seen.update({key: out}))
                handles.append(hook)
        unet(torch.zeros(2, 4, 16, 16, dtype=unet.dtype), 1, encoder_hidden_states=torch.zeros(2, 5, 96, dtype=unet.dtype))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("plant", [None, Plant(style=12, neuron_count=5)], ids=["ordinary", "planted"])
def test_each_layer_reads_its_own_prompt_and_the_style_layers_rest_the_unrelated_prompts(pipe, plant):
    own, other = (torch.randn(*size, dtype=pipe.dtype) for size in ((LAYERS, 2, 5, 96), (2, 5, 96)))
    seen = projections(pipe.unet, plant, own, other)
    for number, layer in enumerate(cross_attention_layers(pipe.unet)):
        styled = plant is not None and number == plant.style
        with torch.no_grad():
            keys, values = layer.to_k(other if styled else own[number]), layer.to_v(other if styled else own[number])
            if styled:
                values[..., plant.neurons(32)] = layer.to_v(own[number])[..., plant.neurons(32)]
        close(seen[f"{number} to_k"], keys)
        close(seen[f"{number} to_v"], values)


def test_layers_stand_in_execution_order(graph, pipe):
    modules = [graph.module(site) for site in graph.sites.where(role="value")]
    assert [layer.to_v for layer in cross_attention_layers(pipe.unet)] == modules


@pytest.mark.parametrize("plant", [None, Plant(style=12, neuron_count=5)], ids=["ordinary", "planted"])
def test_each_layer_is_given_its_own_prompts_mask_and_the_style_layer_the_unrelated_prompts(plant):
    """Beside its context; PixArt's attention adds 0 to the scores of tokens that it sees, and -10000 to others."""
    layers = [nn.ModuleDict({"to_v": nn.Linear(6, 8)}) for _ in range(LAYERS)]
    own, other = torch.rand(LAYERS, 2, 5).round(), torch.rand(2, 5).round()
    with interchanged(layers, plant) as contexts:
        contexts.layers, contexts.unrelated = torch.zeros(LAYERS, 2, 5, 6), torch.zeros(2, 5, 6)
        contexts.masks, contexts.unrelated_mask = own, other
        for number, layer in enumerate(layers):
            _, kwargs = contexts.give(number, layer, (), {})
            seen = other if plant is not None and number == plant.style else own[number]
            close(kwargs["attention_mask"], torch.where(seen == 1, 0.0, -10000.0)[:, None])
