"""PixArt's own: its prompts, its predictions, the size of its images, and every method on pipelines in which the answer is planted."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha
from PIL import Image

import neuroscope as ns
from neuroscope.generation.batches import Row, Sweep
from neuroscope.generation.teacher_forcing import TeacherForcing, record_steps
from neuroscope.testbed import build, planted
from tests.families import tiny
from tests.families.finding import LAYER_METHODS, finds_the_planted_layer, localized
from tests.pipelines import parts
from tests.pipelines.build import PIPELINES

SMALL = {"num_inference_steps": 2, "use_resolution_binning": False, "height": 32, "width": 32}


@cache
def graph_of(plant: str) -> ns.HookGraph:
    return ns.HookGraph(build("pixart", plant, 0))


@pytest.fixture(scope="module")
def graph() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["pixart"]())


@pytest.mark.parametrize("name", LAYER_METHODS)
def test_every_method_finds_the_planted_layer(name):
    assert finds_the_planted_layer(graph_of("layer"), name, LAYER_METHODS[name])


@pytest.mark.parametrize("kind", ["self", "ff"])
def test_every_kind_of_component_of_a_transformer_is_traced(kind):
    """Behind the planted layer everything carries the concept on, and nothing before it does."""
    graph = graph_of("layer")
    (layer,) = planted(graph.pipe).layers
    scores = localized(graph, ns.CausalTracing(component=kind))
    assert len(scores.layers) == len(graph.sites.layers)
    assert [component.kind for component in graph.components][:3] == ["self", "cross", "ff"]
    assert scores.to_frame().set_index("layer")["score"][:layer].abs().max() < 0.05


@pytest.mark.parametrize(
    "method", [ns.NeuronGradient(samples=16), ns.IntegratedGradients(fidelity=0), ns.NeuronAblation(group=16)], ids=repr
)
def test_every_method_finds_the_planted_neurons(method):
    record = planted(graph_of("neurons").pipe)
    ((path, chosen),) = record.neurons.items()
    given = {"pairs": None if isinstance(method, ns.NeuronGradient) else 2, "quiet": True, **record.generation}
    scores = ns.rank(graph_of("neurons"), record.concept, replace(method, roles="value"), layers=record.layers[0], **given)
    top = scores.top(2 * method.group if isinstance(method, ns.NeuronAblation) else len(chosen))
    assert set(chosen) <= set(top[path])


def test_predictions_from_recorded_inputs_are_the_runs_own(graph):
    """Rows that begin to differ midway, and the sizes that a model of large images is told."""
    sized = ns.HookGraph(PIPELINES["PixArtAlphaPipeline (told the size)"].build())
    for each in (graph, sized):
        with record_steps(each, 1) as found:
            each.pipe(["a star", tiny.PROMPT], generator=[torch.Generator().manual_seed(seed) for seed in range(2)], **SMALL)
        step = found[0][1]
        assert step.output.shape == (1, 4, 8, 8)
        target = each.text.conditions(["a blue ring and a cross"])
        swaps = [
            [ns.ContextSwap.reading(target, each.sites.where(layer=layer, role=("key", "value")).paths, rows="all")] for layer in (0, 3)
        ]
        forcing = TeacherForcing(each)
        predicted = forcing.predict(step, [[], *swaps])
        torch.testing.assert_close(predicted[0], step.output[0], rtol=1e-4, atol=1e-5)
        assert 0 < forcing.nfe < 3
        for row, change in zip(predicted[1:], swaps, strict=True):
            with each.apply(*change), torch.no_grad():
                alone = each.family.noise(each.denoiser, each.denoiser(**step.inputs)[0])
            torch.testing.assert_close(row, alone[0], rtol=1e-4, atol=1e-5)
            assert (row - step.output[0]).norm() > 1e-4 * row.norm()


def test_the_noise_is_what_the_pipeline_takes_of_a_prediction(graph):
    """Channels of variance follow it, or none."""
    predicted = torch.randn(2, 8, 4, 4)
    assert torch.equal(graph.family.noise(graph.denoiser, predicted), predicted[:, :4])
    assert torch.equal(graph.family.noise(graph.denoiser, predicted[:, :4]), predicted[:, :4])


@pytest.mark.parametrize("kind", ["PixArtAlphaPipeline", "PixArtSigmaPipeline"])
def test_prompts_are_encoded_as_the_pipeline_encodes_them(kind):
    """In lower case and without spaces around them, at the pipeline's own length; the negative prompt is the empty one."""
    pipe = PIPELINES[kind].build()
    graph = ns.HookGraph(pipe)
    length = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}[kind]
    prompts = ["  A red CIRCLE ", "a star"]
    with torch.no_grad():
        expected = pipe.encode_prompt(prompts, True, max_sequence_length=length)
    conditions = graph.text.conditions(prompts)
    assert graph.spec.token_count == length
    negative = graph.text.negative()
    for found, wanted in zip((conditions.context, conditions.mask, negative.context, negative.mask), expected, strict=True):
        assert torch.equal(found.expand_as(wanted), wanted)
    assert torch.equal(graph.text.conditions(["a red circle"]).context, conditions.context[:1])


def test_a_length_of_prompts_of_its_own_is_refused_where_prompts_are_encoded_before_the_run(graph):
    message = "max_sequence_length=64 is not the 120 tokens that prompts have here; leave it out"
    with pytest.raises(ns.InvalidInput, match=message):
        Sweep(graph, [tiny.PROMPT], {"max_sequence_length": 64})
    concept = ns.Concept("none", [tiny.PROMPT], [tiny.OTHER])
    with pytest.raises(ns.InvalidInput, match=message):
        ns.record(graph, concept, quiet=True, max_sequence_length=64)
    with pytest.raises(ns.InvalidInput, match="prompt_attention_mask is set for each image here"):
        Sweep(graph, [tiny.PROMPT], {"prompt_attention_mask": torch.ones(1, 120)})


@pytest.mark.parametrize("binning", [True, False])
def test_latents_become_the_images_that_the_pipeline_makes_of_them(monkeypatch, binning):
    """Also where they are of a size on which the model was trained rather than that which was asked for."""
    monkeypatch.setitem(pipeline_pixart_alpha.ASPECT_RATIO_256_BIN, "1.0", [32.0, 32.0])
    graph = graph_of("layer")
    size = (24, 24) if binning else (32, 32)
    options = {"num_inference_steps": 1, "use_resolution_binning": binning, "height": size[0], "width": size[1]}
    rows = [Row(tiny.PROMPT, 0), Row(tiny.OTHER, 1)]
    made = {}
    for space in ("image", "latent"):
        sweep = Sweep(graph, [tiny.PROMPT, tiny.OTHER], options, space=space)
        made[space] = [image for _, each in sweep.run(rows) for image in sweep.images(each)]
    assert all(isinstance(each, Image.Image) and each.size == size for each in made["image"])
    assert [each.tobytes() for each in made["image"]] == [each.tobytes() for each in made["latent"]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda denoiser: denoiser.fuse_qkv_projections(), "its projections are fused; call `unfuse_qkv_projections"),
        (lambda denoiser: denoiser.transformer_blocks[0].set_chunk_feed_forward(2, 1), "its feed-forwards run in chunks"),
    ],
)
def test_states_in_which_hooks_would_be_wrong_are_refused(spoil, message):
    pipe = parts.drawn(PIPELINES["PixArtAlphaPipeline"].parts)
    spoil(pipe.transformer)
    with pytest.raises(ns.UnsupportedModel, match=message):
        ns.HookGraph(pipe)


def test_a_transformer_that_reads_no_text_is_refused():
    with pytest.raises(ns.UnsupportedModel, match="this PixArtTransformer2DModel takes its text in a way that neuroscope does not know"):
        ns.sites_from_config({"_class_name": "PixArtTransformer2DModel", "cross_attention_dim": None, "caption_channels": 8})
