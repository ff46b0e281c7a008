"""What DeepFloyd does otherwise: added keys and values with biases, text that each layer normalises for itself, T5's padding."""

import pytest
import torch

from neuroscope import Concept, HookGraph, LatentShare, LocoEdit, LocoGen, edit, fold, localize
from neuroscope.core.tokens import align, kinds_of_tokens
from neuroscope.testbed import build, planted
from tests.families import tiny

RIDGE = 1e-3


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    """Every layer's norm scales the text in its own way, as trained ones do."""
    pipe = tiny.PIPELINES["if-1"]()
    rng = torch.Generator().manual_seed(0)
    for module in pipe.unet.modules():
        if getattr(module, "norm_cross", None) is not None:
            module.norm_cross.weight.data.add_(torch.randn(module.norm_cross.weight.shape, generator=rng), alpha=0.5)
    return HookGraph(pipe)


def read_by(graph: HookGraph, path: str, prompts) -> dict[str, torch.Tensor]:
    """What a projection reads of each prompt in a real run, seen by a plain hook."""
    seen = []
    handle = graph.denoiser.get_submodule(path).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    for prompt in prompts:
        tiny.draw(graph.pipe, prompt, num_inference_steps=1, guidance_scale=1.0)
    handle.remove()
    return {prompt: each[0].double() for prompt, each in zip(prompts, seen, strict=True)}


def test_an_edit_is_the_published_one_of_each_layers_own_text_and_leaves_biases(graph, concept):
    """Each projection against the dense closed form on its own normalised inputs; folded, weights are that form and biases themselves."""
    made = edit(graph, concept, LocoEdit(tokens="all", ridge=RIDGE), [3, 17])
    pairs = list(zip(concept.present, concept.absent, strict=True))
    places = align(graph.text.tokenizer, pairs, concept.name, ("all",))
    expected, biases = {}, {}
    for site in graph.sites.at(made.paths):
        present, absent = (read_by(graph, site.module, arm) for arm in (concept.present, concept.absent))
        rows = {
            (tuple(present[first][here].tolist()), tuple(absent[second][there].tolist()))
            for (first, second), found in zip(pairs, places, strict=True)
            for here, there in found
        }
        keys, targets = (torch.tensor(each, dtype=torch.float64) for each in zip(*rows, strict=True))
        module = graph.module(site)
        penalty = RIDGE * keys.square().sum(dim=1).mean() * torch.eye(keys.shape[1], dtype=torch.float64)
        weight = module.weight.detach().double()
        expected[site.path] = (torch.linalg.inv(keys.T @ keys + penalty) @ (keys.T @ targets @ weight.T + penalty @ weight.T)).T
        biases[site.path] = module.bias.detach().clone()
    before = {path: graph.module(site).weight.detach().clone() for path, site in zip(made.paths, graph.sites.at(made.paths), strict=True)}
    with fold(graph, made):
        for site in graph.sites.at(made.paths):
            found, wanted = graph.module(site).weight.double(), expected[site.path]
            assert (found - wanted).norm() < 1e-3 * (wanted - before[site.path]).norm()
            assert torch.equal(graph.module(site).bias, biases[site.path])
    assert len(made.paths) == 4


def test_text_is_normalised_by_each_layer_for_itself(graph):
    """So one map would not do: two layers read different vectors of one prompt."""
    first, second = (read_by(graph, graph.sites.where(layer=layer, role="value")[0].module, [tiny.PROMPT]) for layer in (3, 17))
    assert not torch.allclose(first[tiny.PROMPT], second[tiny.PROMPT], atol=1e-2)


def test_padding_is_masked_in_the_encoder_and_read_by_the_denoiser(graph):
    """No mask goes to the denoiser: vectors at padding's places move the image."""
    conditions = graph.text.conditions([tiny.PROMPT])
    (kinds,) = kinds_of_tokens(graph.text.tokenizer, [tiny.PROMPT], "stipple")
    silenced = conditions.context.clone()
    silenced[:, torch.from_numpy(kinds == "padding")] = 0

    def draw(context):
        options = tiny.of_pixels(graph.pipe, 1) | {"num_inference_steps": 2, "guidance_scale": 1.0}
        return graph.pipe(prompt_embeds=context, generator=torch.Generator().manual_seed(0), **options).images

    before = draw(conditions.context)
    assert (draw(silenced) - before).norm() > 0.05 * before.norm()


@pytest.fixture(scope="module")
def dependent():
    """A pipeline whose layer depends on the prompt."""
    return tiny.exact(build("if-1", "prompt", 0))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_layer_that_depends_on_the_prompt_is_said_to(dependent, scale):
    plant = planted(dependent)
    first, *_, last = range(len(plant.by_prompt))
    assert plant.by_prompt[first] != plant.by_prompt[last]
    concept = Concept(plant.concept.name, *([arm[first], arm[last]] for arm in (plant.concept.present, plant.concept.absent)))
    options = {"pairs": 2, "keep_images": 0, "quiet": True} | dict(plant.generation) | {"guidance_scale": scale}
    scores = localize(HookGraph(dependent), concept, LocoGen(), LatentShare(), [0], **options)
    assert "the 2 prompts disagree: layer" in scores.verdict
    assert "the place depends on the prompt" in scores.verdict
    assert [(layer,) for layer in scores.by_prompt()["layer"]] == [plant.by_prompt[first], plant.by_prompt[last]]
