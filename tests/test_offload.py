"""Every operation on a pipeline whose parts are offloaded by accelerate, as diffusers does it on a GPU, against the same one in place."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from neuroscope import (
    AttentionContribution,
    AttributionPatching,
    CausalAttribution,
    CausalTracing,
    HookGraph,
    IntegratedGradients,
    LatentShare,
    LocoEdit,
    LocoGen,
    NeuronGradient,
    NeuronMask,
    TeacherForced,
    Welch,
    edit,
    evaluate,
    export_lora,
    fold,
    localize,
    rank,
    record,
    score,
)
from neuroscope.testbed.construction.pipelines import build_unplanted
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, concept_of

CONCEPT = concept_of(STIPPLE[:2])
SHORT = SMALL | {"seeds": [0], "quiet": True}
METHODS = [
    LocoGen(),
    LocoGen(search="auto"),
    TeacherForced(steps=1, fidelity=0),
    AttentionContribution(steps=1, fidelity=0, against="other"),
    AttributionPatching(steps=1, samples=2, fidelity=0),
    AttributionPatching(steps=1, samples=1, recomputed=True, fidelity=0),
    CausalTracing(component="text"),
    IntegratedGradients(steps=1, samples=2, fidelity=0),
    NeuronGradient(samples=3),
]


def by_part(pipe):
    """What `enable_model_cpu_offload` does: a whole part moves when it is called."""
    pipe.enable_model_cpu_offload(device="cpu")


def by_module(pipe):
    """What `enable_sequential_cpu_offload` does, which refuses a CPU: weights rest outside the modules, which hold none."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            cpu_offload(part, torch.device("cpu"))
    assert {each.device.type for each in pipe.unet.parameters()} == {"meta"}


@pytest.fixture(params=[by_part, by_module], scope="module")
def offloaded(request):
    pipe = tiny.sd1()
    request.param(pipe)
    return HookGraph(pipe)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_localisation_finds_the_same(method, graph, offloaded):
    neurons = isinstance(method, CausalAttribution)
    found, expected = (
        rank(each, CONCEPT, method, layers=8, **SHORT) if neurons else localize(each, CONCEPT, method, LatentShare(), **SHORT)
        for each in (offloaded, graph)
    )
    if hasattr(expected, "effects"):
        torch.testing.assert_close(found.effects.values, expected.effects.values, rtol=1e-6, atol=1e-6, equal_nan=True)
    else:
        torch.testing.assert_close(dict(found.scores), dict(expected.scores), rtol=1e-6, atol=1e-6)
    assert found.cost.nfe == pytest.approx(expected.cost.nfe)


def test_recordings_rankings_and_masks_are_the_same(graph, offloaded, concept):
    sites = graph.sites.where(layer=8, role=("key", "value", "query"))
    short = {"num_inference_steps": 1, "quiet": True, "keep_samples": True}
    found, expected = (record(each, concept, sites, **short) for each in (offloaded, graph))
    assert all(torch.allclose(found.mean("present")[path], mean) for path, mean in expected.mean("present").items())
    assert all(torch.allclose(found.outgoing[path], norm) for path, norm in expected.outgoing.items())
    neurons = score(expected, Welch()).top(10)
    assert score(found, Welch()).top(10) == neurons
    mask = NeuronMask(neurons, fill=expected.mean("absent"))
    images = []
    for each in (offloaded, graph):
        with each.apply(mask):
            images.append(tiny.draw(each.pipe, num_inference_steps=1))
    torch.testing.assert_close(*images)


class Brightness:
    name = "brightness"

    def __call__(self, images, prompts):

        return np.array([np.asarray(each).mean() for each in images])


def test_edits_folds_exports_and_evaluations_are_the_same(graph, offloaded, tmp_path):
    changes = [edit(each, CONCEPT, LocoEdit(), layers=8) for each in (offloaded, graph)]
    for name in ("read", "write"):
        found, expected = (getattr(each, name) for each in changes)
        assert torch.allclose(*(torch.cat([part.flatten() for part in tensors_of(each)]) for each in (found, expected)))
    files = [
        export_lora(each, change, tmp_path / str(number))
        for number, (each, change) in enumerate(zip((offloaded, graph), changes, strict=True))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    before = tiny.draw(offloaded.pipe, num_inference_steps=1)
    with fold(offloaded, changes[0]):
        folded = tiny.draw(offloaded.pipe, num_inference_steps=1)
    assert torch.equal(tiny.draw(offloaded.pipe, num_inference_steps=1), before)
    with offloaded.apply(changes[0]):
        torch.testing.assert_close(tiny.draw(offloaded.pipe, num_inference_steps=1), folded, rtol=1e-4, atol=1e-4)
    asked = {"prompts": [tiny.PROMPT], "seeds": [0], "metrics": Brightness(), "num_inference_steps": 1, "quiet": True}
    tables = [evaluate(each, {"edit": change}, **asked) for each, change in zip((offloaded, graph), changes, strict=True)]
    assert tables[0].score.to_numpy() == pytest.approx(tables[1].score.to_numpy(), abs=0.5)


def tensors_of(value):
    return value.values() if isinstance(value, dict) else [value]


def test_text_is_read_where_the_denoisers_weights_rest(fresh, monkeypatch):
    """Under model offload the pipeline runs on the GPU, and the denoiser's projections rest on the CPU when they are called alone."""
    graph = HookGraph(fresh)
    conditions = graph.text.conditions([tiny.PROMPT])
    monkeypatch.setattr(type(fresh), "_execution_device", torch.device("meta"))
    (site,) = graph.sites.where(layer=8, role="value")
    assert graph.text.read(site, conditions).device.type == "cpu"
    ((_, read),) = graph.text.read_each([site], conditions)
    assert graph.module(site)(read).device.type == "cpu"


def test_a_family_with_a_pooled_text_is_recorded_where_it_rests(monkeypatch):
    graph = HookGraph(build_unplanted("sdxl", 0))
    conditions = graph.text.conditions([tiny.PROMPT])
    monkeypatch.setattr(type(graph.pipe), "_execution_device", torch.device("meta"))
    ((_, read),) = graph.text.read_each(graph.sites.where(role="pooled"), conditions)
    assert read.device.type == "cpu"


def test_shares_are_measured_in_double_precision_on_the_cpu():
    """Apple's GPUs have no float64."""
    runs = [torch.full((1, 2), value, dtype=torch.float16) for value in (0.5, 0.0, 1.0)]
    assert LatentShare()(*runs) == 0.5
