"""However a pipeline is given its prompt, a swap of all that reads text is the run of the other prompt given in the same way."""

import inspect

import pytest
import torch

from neuroscope import ContextSwap, HookGraph, InvalidInput, NeuronMask, Neurons
from neuroscope.generation.batches import Sweep
from tests.families import tiny

EVERYTHING = ("key", "value", "pooled")


@pytest.fixture(scope="module", params=tiny.PIPELINES)
def graph(request) -> HookGraph:
    return HookGraph(tiny.PIPELINES[request.param]())


def swapped(graph: HookGraph, other: str = tiny.OTHER, **options) -> torch.Tensor:
    """The final latents of the first prompt's run, in which every reader of text reads the other prompt."""
    clip_skip = {"clip_skip": options["clip_skip"]} if "clip_skip" in options else {}
    conditions = graph.text.conditions([other], **clip_skip)
    swap = ContextSwap.reading(conditions, graph.sites.where(role=EVERYTHING).paths)
    with graph.apply(swap):
        return tiny.draw(graph.pipe, **options)


def close(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 4.0, "negative_prompt": "a green cross"},
        {"guidance_scale": 4.0, "num_images_per_prompt": 2},
        {"guidance_scale": 1.0, "num_images_per_prompt": 2},
    ],
    ids=["unguided", "negative", "several, guided", "several, unguided"],
)
def test_options_of_the_call(graph, options):
    taken = inspect.signature(type(graph.pipe).__call__).parameters
    if not options.keys() <= taken.keys():
        pytest.skip("sounds are made one a prompt")
    expected = tiny.draw(graph.pipe, tiny.OTHER, **options)
    close(swapped(graph, **options), expected)
    assert (tiny.draw(graph.pipe, **options) - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_clip_skip(name):
    """On a pipeline of its own: the option leaves hooks of transformers, and diffusers looks for an old attribute."""
    graph = HookGraph(tiny.PIPELINES[name]())
    for encoder in graph.text.encoders:
        if not hasattr(encoder, "text_model"):
            vars(encoder)["text_model"] = encoder
    options = {"guidance_scale": 1.0, "clip_skip": 1}
    expected = tiny.draw(graph.pipe, tiny.OTHER, **options)
    close(swapped(graph, **options), expected)
    assert (tiny.draw(graph.pipe, tiny.OTHER, guidance_scale=1.0) - expected).norm() > 1e-3 * expected.norm()


def test_embeddings_in_place_of_a_prompt(graph):
    """The conditions of a graph are what the pipeline itself makes of the prompt."""
    conditions = graph.text.conditions([tiny.OTHER])
    given = graph.text.arguments(conditions, graph.text.negative())
    given = {name: value for name, value in given.items() if not name.startswith("negative")}
    expected = tiny.draw(graph.pipe, tiny.OTHER, guidance_scale=1.0)
    noise = torch.Generator().manual_seed(0)
    options = tiny.of_pixels(graph.pipe, 1) | {"num_inference_steps": 2, "guidance_scale": 1.0}
    close(graph.pipe(generator=noise, **given, **options)[0], expected)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_embeddings_are_swapped_and_masked_as_a_prompt_is(graph, scale):
    """The run of one prompt's embeddings in which all that reads text reads the other's, and a mask of it."""
    given = graph.text.arguments(graph.text.conditions([tiny.PROMPT]), graph.text.negative())
    options = tiny.of_pixels(graph.pipe, 1) | {"num_inference_steps": 2, "guidance_scale": scale}
    conditions = graph.text.conditions([tiny.OTHER])
    (site,) = graph.sites.where(layer=8, role="value")
    swap = ContextSwap.reading(conditions, graph.sites.where(role=EVERYTHING).paths)
    mask = NeuronMask(Neurons.at(graph.sites, {site.path: range(4)}), fill=2.0)
    for change, other in ((swap, tiny.OTHER), (mask, tiny.PROMPT)):
        with graph.apply(change):
            found = graph.pipe(generator=torch.Generator().manual_seed(0), **given, **options)[0]
        with graph.apply(*[mask] if change is mask else []):
            close(found, tiny.draw(graph.pipe, other, guidance_scale=scale))


def test_a_prompt_of_its_own_for_sdxls_second_encoder():
    """It is part of the context: swapped and masked as ever, and refused where each image has its own prompt."""
    graph = HookGraph(tiny.PIPELINES["sdxl"]())
    expected = tiny.draw(graph.pipe, tiny.OTHER, guidance_scale=1.0)
    close(swapped(graph, guidance_scale=1.0, prompt_2="a green cross"), expected)
    (site,) = graph.sites.where(layer=8, role="value")
    mask = NeuronMask(Neurons.at(graph.sites, {site.path: range(4)}), fill=2.0)
    with graph.apply(mask), graph.capture([site]) as captured:
        tiny.draw(graph.pipe, prompt_2="a green cross")
    assert (captured.select(site.path, rows="conditional")[..., :4] == 2.0).all()
    with pytest.raises(InvalidInput, match="prompt_2 is set for each image here; give only options that all images share"):
        Sweep(graph, [tiny.PROMPT], {"prompt_2": "a green cross"})


def test_guidance_as_an_embedding():
    """Distilled models take the scale as an input, so that every row carries a prompt whatever the scale is."""
    pipe = tiny.sd1()
    graph = HookGraph(tiny.with_parts(pipe, unet=tiny.build_unet(time_cond_proj_dim=32).eval()))
    with graph.capture(graph.sites.where(role="key", layer=0)) as captured, tiny.counted(graph.denoiser) as calls:
        expected = tiny.draw(graph.pipe, tiny.OTHER, guidance_scale=7.5)
    assert set(calls) == {1}
    assert all(captured.select(site.path, rows="conditional").shape[1] == 1 for site in captured.sites)
    close(swapped(graph, guidance_scale=7.5), expected)
