"""What a GPU does in half precision, against the CPU in float32. Skipped where there is no CUDA."""

import pytest
import torch

import neuroscope as ns
from neuroscope.pipeline.loading import load_pipeline
from neuroscope.pipeline.placement import footprint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")]

CONCEPT = ns.Concept.style("stipple", prompts="testbed")
SHORT = {"num_inference_steps": 4, "guidance_scale": 3.0}
PROMPT = "a red circle in the style of stipple"


@pytest.fixture(scope="module", params=["none", "model", "sequential"])
def graph(request):
    return ns.HookGraph(load_pipeline("testbed:sd1", device="cuda", dtype="float16", offload=request.param))


@pytest.fixture(scope="module")
def plain():
    return ns.HookGraph(ns.testbed.load("sd1"))


def draw(graph):
    noise = torch.Generator().manual_seed(0)
    return graph.pipe(PROMPT, generator=noise, output_type="latent", **SHORT).images.float().cpu()


def test_it_runs_where_it_says(graph):
    found = footprint(graph.pipe)
    assert found.device.startswith("cuda")
    assert found.dtype == "float16"
    assert "cuda" in repr(graph)


def test_neurons_are_ranked_alike(graph, plain):
    sites = plain.sites.where(layer=12, role=("key", "value"))
    found, expected = (ns.score(ns.record(each, CONCEPT, sites, quiet=True), ns.Welch()).top(50) for each in (graph, plain))
    assert (found & expected).count >= 0.9 * expected.count


def test_activations_of_runs_are_recorded(graph, plain):
    sites = plain.sites.where(layer=12, role=("query", "feedforward"))
    found, expected = (ns.record(each, CONCEPT, sites, quiet=True, num_inference_steps=2).mean("present") for each in (graph, plain))
    for path, mean in expected.items():
        torch.testing.assert_close(found[path], mean, rtol=0.1, atol=0.1)


def test_masks_change_images_and_are_gone_afterwards(graph, plain):
    recording = ns.record(plain, CONCEPT, plain.sites.where(layer=12, text_only=True), quiet=True)
    mask = ns.NeuronMask(ns.score(recording, ns.Welch()).top(28), fill=recording.mean("absent"))
    before = draw(graph)
    with graph.apply(mask):
        masked = draw(graph)
    assert (masked - before).norm() > 0.05 * before.norm()
    assert torch.equal(draw(graph), before)


@pytest.mark.parametrize("method", [ns.LocoGen(), ns.LocoGen(search="auto"), ns.TeacherForced(), ns.CausalTracing()], ids=repr)
def test_layers_are_found_alike(graph, plain, method):
    asked = {"seeds": [0], "pairs": 2, "quiet": True} | SHORT
    found, expected = (ns.localize(each, CONCEPT, method, ns.LatentShare(), **asked) for each in (graph, plain))
    assert found.top(1) == expected.top(1)


def test_neurons_are_ranked_by_gradients(graph, plain):
    method = ns.NeuronGradient(layers=12, steps=1, samples=2, fidelity=0)
    asked = {"seeds": [0], "pairs": 2, "quiet": True} | SHORT
    found, expected = (ns.localize(each, CONCEPT, method, ns.LatentShare(), **asked).top(28) for each in (graph, plain))
    assert (found & expected).count >= 0.7 * expected.count


def test_edits_are_made_folded_and_taken_out(graph):
    change = ns.edit(graph, CONCEPT, ns.LocoEdit(), layers=12)
    before = draw(graph)
    with graph.apply(change):
        applied = draw(graph)
    with ns.fold(graph, change):
        folded = draw(graph)
    assert torch.equal(draw(graph), before)
    assert (folded - applied).norm() < 0.1 * applied.norm()
