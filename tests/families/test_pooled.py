"""The pooled text path: it is a site, runs say what feeds it, and a swap of all layers and of it is the other run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuroscope import (
    ContextMap,
    ContextSwap,
    HookGraph,
    InvalidInput,
    LatentShare,
    LocoEdit,
    LocoGen,
    MeanDifference,
    NeuronMask,
    Neurons,
    edit,
    export_lora,
    fold,
    load,
    localize,
    record,
    save,
    score,
)
from neuroscope.report import plots
from neuroscope.testbed import build, planted
from tests.families import tiny

LORAS = ("sdxl", "if-1", "if-2")  # diffusers reads no LoRA files into HunyuanDiT
FAMILIES = (*LORAS, "hunyuandit")
SHORT = {"pairs": 2, "keep_images": 0, "quiet": True}


@pytest.fixture(scope="module", params=FAMILIES)
def graph(request) -> HookGraph:
    return HookGraph(tiny.PIPELINES[request.param]())


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("rows", ["conditional", "all"])
def test_all_layers_and_the_pooled_text_swapped_is_the_other_run(graph, scale, rows):
    sites = graph.sites.where(role=("key", "value", "pooled"))
    swap = ContextSwap.of(graph, sites, tiny.OTHER, rows=rows)
    negative = {"negative_prompt": tiny.OTHER} if rows == "all" and scale > 1 else {}
    expected = tiny.draw(graph.pipe, tiny.OTHER, guidance_scale=scale, **negative)
    with graph.apply(swap):
        swapped = tiny.draw(graph.pipe, guidance_scale=scale)
    assert torch.equal(swapped, expected)


def test_all_layers_without_it_are_not(graph):
    swap = ContextSwap.of(graph, graph.sites.where(role=("key", "value")), tiny.OTHER)
    with graph.apply(swap):
        moved = tiny.draw(graph.pipe)
    expected = tiny.draw(graph.pipe, tiny.OTHER)
    assert (moved - expected).norm() > 1e-3 * expected.norm()


def test_changes_say_which_prompt_feeds_it(graph, pipe):
    pooled = graph.sites.where(role="pooled")
    inside = graph.sites.where(layer=0, role=("key", "value"))
    assert ContextSwap.of(graph, inside, tiny.OTHER).pooled_text(graph.sites) == "the run's own prompt"
    assert ContextSwap.of(graph, [*pooled, *inside], tiny.OTHER).pooled_text(graph.sites) == "changed by the context-swap"
    width = graph.module(inside[0]).in_features
    inner = ContextMap(inside.paths, torch.ones(1, width), torch.ones(1, width))
    assert inner.pooled_text(graph.sites) == "the run's own prompt"
    assert replace(inner, paths=(*inside.paths, *pooled.paths)).pooled_text(graph.sites) == "changed by the context-map"
    mask = NeuronMask(Neurons.at(graph.sites, {pooled[0].path: [0]}))
    assert mask.pooled_text(graph.sites) == "changed by the neuron-mask"
    plain = HookGraph(pipe)
    assert ContextSwap.of(plain, plain.sites.where(layer=0, role="key"), tiny.OTHER).pooled_text(plain.sites) == ""


def test_its_neurons_are_recorded_ranked_and_masked(graph, concept):
    (site,) = graph.sites.where(role="pooled")
    short = {} if site.text_only else {"num_inference_steps": 1, "height": 32, "width": 32} | tiny.of_pixels(graph.pipe, 1)
    short.pop("output_type", None)
    recording = record(graph, concept, [site], "subject", quiet=True, **short)
    expected = {}
    for arm, prompts in (("present", concept.present), ("absent", concept.absent)):
        with graph.capture([site]) as captured:
            tiny.draw(graph.pipe, list(prompts), num_inference_steps=1)
        expected[arm] = captured.select(site.path, rows="conditional")[0].double().mean(dim=0)
    found = score(recording, MeanDifference()).scores[site.path]
    torch.testing.assert_close(found, expected["present"] - expected["absent"], atol=1e-5, rtol=1e-4)
    mask = NeuronMask(score(recording, MeanDifference()).top(4), fill=0.5, rows="all")
    with graph.apply(mask):
        masked = tiny.draw(graph.pipe)
    with fold(graph, mask):
        torch.testing.assert_close(tiny.draw(graph.pipe), masked, atol=1e-4, rtol=1e-4)
    with pytest.raises(InvalidInput, match="has no tokens; make the mask without tokens"), graph.apply(replace(mask, tokens=(0,))):
        raise AssertionError("nothing may run")


def test_chosen_neurons_of_it_are_not_swapped(graph):
    (site,) = graph.sites.where(role="pooled")
    conditions = graph.text.conditions([tiny.OTHER])
    swap = ContextSwap([site.path], conditions.context, Neurons.at(graph.sites, {site.path: [0]}), pooled=conditions.pooled)
    with pytest.raises(InvalidInput, match="can be swapped as a whole only; leave out its neurons"):
        swap.check(graph.spec)


def test_the_graph_is_drawn_with_it(graph):
    assert ("prompt", graph.sites.where(role="pooled")[0].path) in graph.edges
    ax = plots.graph(graph)
    assert any("pooled" in label.get_text() for label in [*ax.get_yticklabels(), *ax.texts])


@pytest.mark.parametrize(
    "family", [pytest.param("sdxl", marks=pytest.mark.slow), "if-1", "if-2", pytest.param("hunyuandit", marks=pytest.mark.slow)]
)
def test_locogen_reports_its_share(family):
    pipe = tiny.exact(build(family, "pooled", seed=0))
    graph, plant = HookGraph(pipe), planted(pipe)
    scores = localize(graph, plant.concept, LocoGen(), LatentShare(), [0], **SHORT, **plant.generation)
    share, low, high = scores.pooled_share
    np.testing.assert_allclose([share, low, high], 1.0, atol=1e-2)
    assert scores.verdict.startswith("the pooled text carries 100%")
    assert max(map(abs, scores.scores)) < 1e-2
    assert len(scores.top(3)) == 3
    with_it = localize(graph, plant.concept, LocoGen(pooled="other"), LatentShare(), [0], **SHORT, **plant.generation)
    assert min(with_it.scores) > 0.99


def test_an_edit_of_it_is_saved_and_folded(tmp_path):
    pipe = tiny.exact(build("sdxl", "pooled", seed=0))
    graph, plant = HookGraph(pipe), planted(pipe)
    change = edit(graph, plant.concept, LocoEdit(roles=("key", "value", "pooled"), ridge=1e-4), layers=0)
    save(change, tmp_path / "edit.safetensors")
    runs = []
    for each in (change, load(tmp_path / "edit.safetensors")):
        with graph.apply(each):
            runs.append(
                pipe(plant.concept.present[0], generator=torch.Generator().manual_seed(0), output_type="latent", **plant.generation)
            )
    assert torch.equal(runs[0].images, runs[1].images)
    goal = pipe(plant.concept.absent[0], generator=torch.Generator().manual_seed(0), output_type="latent", **plant.generation).images
    own = pipe(plant.concept.present[0], generator=torch.Generator().manual_seed(0), output_type="latent", **plant.generation).images
    assert (runs[0].images - goal).norm() < 0.1 * (own - goal).norm()


@pytest.mark.parametrize("family", LORAS)
def test_an_edit_of_it_is_exported_and_loaded(family, concept, tmp_path):
    """A LoRA file holds the pooled path's module as well, and diffusers puts it there."""
    graph = HookGraph(tiny.PIPELINES[family]())
    change = edit(graph, concept, LocoEdit(roles=("key", "value", "pooled"), tokens="all"), layers=3)
    before = tiny.draw(graph.pipe)
    with graph.apply(change):
        applied = tiny.draw(graph.pipe)
    export_lora(graph, change, tmp_path)
    graph.pipe.load_lora_weights(tmp_path)
    (site,) = graph.sites.where(role="pooled")
    assert hasattr(graph.module(site), "lora_A")
    assert (tiny.draw(graph.pipe) - applied).norm() < 1e-3 * (applied - before).norm() + 1e-5 * before.norm()


@pytest.mark.parametrize("layers", [None, []])
def test_an_edit_of_it_alone_needs_no_layers(concept, layers):
    graph = HookGraph(tiny.PIPELINES["sdxl"]())
    change = edit(graph, concept, LocoEdit(roles="pooled"), layers)
    assert change.paths == graph.sites.where(role="pooled").paths


def test_layers_that_an_edit_of_it_alone_would_ignore_are_refused(concept):
    with pytest.raises(
        InvalidInput, match=r"layers=\[0\] would be ignored: the pooled text path, .* belongs to no layer; leave layers out"
    ):
        edit(HookGraph(tiny.PIPELINES["sdxl"]()), concept, LocoEdit(roles="pooled"), [0])


def test_models_without_it_have_none_to_edit(graph, pipe, concept):
    with pytest.raises(InvalidInput, match="has no pooled text path; edit keys and values alone"):
        edit(HookGraph(pipe), concept, LocoEdit(roles=("key", "pooled")), layers=0)


def test_a_swap_without_pooled_text_is_refused_where_it_is_read():
    graph = HookGraph(tiny.PIPELINES["sdxl"]())
    swap = ContextSwap(graph.sites.where(role="pooled").paths, graph.text.encode([tiny.OTHER]))
    with pytest.raises(
        InvalidInput, match="this change holds no pooled text, which the pooled path reads; make it with graph.text.conditions"
    ):
        swap.check(graph.spec)
