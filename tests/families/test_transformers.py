"""Transformers that cross-attend with normed keys: the norm, predictions of recorded inputs, and every method on planted models."""

from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import pytest
import torch

import neuroscope as ns
from neuroscope.generation.teacher_forcing import TeacherForcing, record_steps
from neuroscope.testbed import build, planted
from tests.families import tiny
from tests.families.test_pixart import LAYER_METHODS

FAMILIES = ("ltx", "wan", "hunyuandit")
SHORT, LONG = "a star", "a red circle and a white square in the style of plain"
LAYER = 5


@cache
def graph_of(family: str, plant: str) -> ns.HookGraph:
    return ns.HookGraph(build(family, plant, 0))


@pytest.fixture(scope="module", params=FAMILIES)
def graph(request) -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES[request.param]())


def swap(graph: ns.HookGraph, prompt: str, **options: object) -> ns.ContextSwap:
    return ns.ContextSwap.of(graph, graph.sites.where(role=("key", "value", "pooled")), prompt, **options)


def drawn(graph: ns.HookGraph, prompt: str, *changes: ns.ContextSwap, **options: object) -> torch.Tensor:
    with graph.apply(*changes):
        return tiny.draw(graph.pipe, prompt, **options)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("source", "target"), [(SHORT, LONG), (LONG, SHORT)])
def test_no_layer_swapped_is_the_source_and_all_are_the_target(graph, source, target, scale):
    """However long either prompt is; the padding of either is the other's then."""
    options = {"guidance_scale": scale, "negative_prompt": "a cross"} if scale > 1 else {"guidance_scale": scale}
    expected, own = (drawn(graph, prompt, **options) for prompt in (target, source))
    assert torch.equal(drawn(graph, source, swap(graph, target), **options), expected)
    assert torch.equal(drawn(graph, source, swap(graph, source), **options), own)
    assert torch.equal(drawn(graph, source, swap(graph, target, strength=0.0), **options), own)
    assert (own - expected).norm() > 0.01 * own.norm()


@pytest.mark.parametrize("role", ["key", "value"])
def test_a_mask_is_zeroed_rows_of_the_weight(graph, role):
    """Biases included, as a fill of 0 is what the whole projection gives."""
    (site,) = graph.sites.where(layer=LAYER, role=role)
    masked = drawn(graph, LONG, ns.NeuronMask(ns.Neurons.at(graph.sites, {site.path: range(4)}), rows="all"), guidance_scale=4.0)
    module = graph.module(site)
    kept = [each.clone() for each in (module.weight.data, module.bias.data)]
    module.weight.data[:4] = module.bias.data[:4] = 0.0
    try:
        torch.testing.assert_close(masked, drawn(graph, LONG, guidance_scale=4.0), rtol=1e-9, atol=1e-9)
    finally:
        for parameter, values in zip((module.weight, module.bias), kept, strict=True):
            parameter.data.copy_(values)


def test_a_zeroed_key_changes_the_others_and_a_zeroed_value_does_not(graph):
    """Keys are normed behind their projection: over all heads, or within one. Values are not."""
    attention = graph.module(graph.sites.where(layer=LAYER, role="key")[0])
    (key,) = graph.sites.where(layer=LAYER, role="key")
    attention = graph.denoiser.get_submodule(key.module.rpartition(".")[0])
    seen: dict[str, torch.Tensor] = {}
    for name in ("own", "masked"):
        with ExitStack() as stack:
            if name == "masked":
                stack.enter_context(graph.apply(ns.NeuronMask(ns.Neurons.at(graph.sites, {key.path: range(4)}))))
            keep = attention.norm_k.register_forward_hook(lambda _module, _args, output, name=name: seen.setdefault(name, output))
            stack.callback(keep.remove)
            tiny.draw(graph.pipe, LONG, guidance_scale=1.0, num_inference_steps=1)
    own, masked = (each.flatten(2)[0, 0] for each in seen.values())
    width = attention.inner_dim // attention.heads
    assert (own - masked)[4:width].abs().min() > 0
    assert attention.norm_k.normalized_shape in ((attention.inner_dim,), (width,))
    if attention.norm_k.normalized_shape == (attention.inner_dim,):
        assert (masked[width:].abs() > own[width:].abs()).all()


def test_predictions_from_recorded_inputs_are_the_runs_own(graph):
    """Rows that begin to differ midway, of either layer, and those of the run itself; of two images at once."""
    with record_steps(graph, 1) as found:
        tiny.draw(graph.pipe, [SHORT, LONG], guidance_scale=1.0)
    first, step = found[0]
    target = graph.text.conditions(["a blue ring and a cross"])
    layers = (0, graph.sites.layers[-1] // 2)
    swaps = [[ns.ContextSwap.reading(target, graph.sites.where(layer=layer, role=("key", "value")).paths, rows="all")] for layer in layers]
    other, predicted = TeacherForcing(graph, 16).predict_each([first, step], [[[]], [[], *swaps]])
    torch.testing.assert_close(other[0], first.output[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predicted[0], step.output[0], rtol=1e-4, atol=1e-5)
    for row, change in zip(predicted[1:], swaps, strict=True):
        with graph.apply(*change), torch.no_grad():
            alone = graph.family.noise(graph.denoiser, graph.denoiser(**step.inputs)[0])
        torch.testing.assert_close(row, alone[0], rtol=1e-4, atol=1e-5)
        assert (row - step.output[0]).norm() > 1e-4 * row.norm()


def test_fused_projections_are_refused(graph):
    graph.denoiser.fuse_qkv_projections()
    try:
        with pytest.raises(ns.UnsupportedModel, match="its projections are fused; call `unfuse_qkv_projections"):
            ns.HookGraph(graph.pipe)
    finally:
        graph.denoiser.unfuse_qkv_projections()
    ns.HookGraph(graph.pipe)


@pytest.mark.parametrize("name", LAYER_METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_finds_the_planted_layer(family, name):
    graph = graph_of(family, "layer")
    record = planted(graph.pipe)
    given = {"pairs": 2, "keep_images": 0, "quiet": True} | dict(record.generation)
    scores = ns.localize(graph, record.concept, LAYER_METHODS[name], ns.LatentShare(), [0], **given)
    (layer,) = record.layers
    assert layer in scores.best.layers if name in ("windows of three", "sets") else scores.top(1) == [layer]


@pytest.mark.parametrize("kind", ["self", "ff"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_component_is_traced(family, kind):
    """Behind the planted layer everything carries the concept on, and nothing before it does."""
    graph = graph_of(family, "layer")
    record = planted(graph.pipe)
    given = {"pairs": 1, "keep_images": 0, "quiet": True} | dict(record.generation)
    scores = ns.localize(graph, record.concept, ns.CausalTracing(component=kind), ns.LatentShare(), [0], **given)
    assert len(scores.layers) == len(graph.sites.layers)
    assert [component.kind for component in graph.components][:3] == ["self", "cross", "ff"]
    assert scores.to_frame().set_index("layer")["score"][: record.layers[0]].abs().max() < 0.05


@pytest.mark.parametrize("method", [ns.NeuronGradient(samples=16), ns.IntegratedGradients(fidelity=0)], ids=["gradient", "integrated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_finds_the_planted_neurons(family, method):
    """By the size of their scores, as some push the images on and others back; precision at k is 1 for at most 200 NFE, chance 1/16."""
    record = planted(graph_of(family, "neurons").pipe)
    ((path, chosen),) = record.neurons.items()
    given = {"pairs": None if isinstance(method, ns.NeuronGradient) else 2, "quiet": True, **record.generation}
    scores = ns.rank(graph_of(family, "neurons"), record.concept, replace(method, roles="value"), layers=record.layers[0], **given)
    table = scores.to_frame().set_index("neuron")
    assert set(table["score"].abs().nlargest(len(chosen)).index) == set(chosen)
    assert set(table["site"]) == {path}
    assert scores.cost.nfe <= 200
