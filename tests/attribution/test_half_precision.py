"""Gradients in float16 and bfloat16: of a scaled loss, as in float32, and never NaN."""

import copy
import re

import pytest
import torch

import neuroscope as ns
from neuroscope.attribution.captum_attribution import attribute
from neuroscope.attribution.patching_metric import PatchingMetric
from neuroscope.generation.teacher_forcing import record_steps
from neuroscope.testbed.plant import PLANT
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, concept_of

HALF = (torch.bfloat16, torch.float16)
METHOD = ns.IntegratedGradients(steps=1, samples=3, fidelity=0)


def cast(pipe, dtype):
    """A copy of a pipeline in another number format."""
    copied = copy.deepcopy(pipe)
    for part in (copied.unet, copied.vae, copied.text_encoder):
        torch.nn.Module.to(part, dtype)  # diffusers' own `to` logs a reminder about modules that this model does not have
    return copied


def run(pipe) -> ns.NeuronScores:
    return ns.rank(ns.HookGraph(pipe), concept_of(STIPPLE[:2]), METHOD, layers=9, quiet=True, **SMALL)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_scores_are_those_of_float32_but_for_rounding(dtype):
    pipe = tiny.sd1()
    expected, found = run(cast(pipe, torch.float32)), run(cast(pipe, dtype))
    for path, each in expected.scores.items():
        assert found.scores[path].dtype == torch.float64
        largest = float(torch.cat(list(expected.scores.values())).abs().max())
        # the activation's change is a difference of numbers that are each rounded, and some hundred roundings lie between it and the end
        torch.testing.assert_close(found.scores[path], each, rtol=0, atol=30 * torch.finfo(dtype).eps * largest)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_strongest_neurons_of_the_plant_are_those_of_float32(dtype):
    concept = ns.Concept.style("stipple", prompts="testbed")
    tops = []
    for each in (torch.float32, dtype):
        graph = ns.HookGraph(cast(ns.testbed.load("sd1"), each))
        options = {"layers": PLANT.style, "pairs": 4, "quiet": True, **ns.testbed.GENERATION}
        tops.append(ns.rank(graph, concept, ns.IntegratedGradients(fidelity=0), **options).top(PLANT.neuron_count))
    assert (tops[0] & tops[1]).count / PLANT.neuron_count >= 0.95


@pytest.fixture
def parts():
    """A function that makes the metric of one recorded step, in some number format, and the modules that move."""

    def make(dtype):
        graph = ns.HookGraph(cast(tiny.sd1(), dtype))
        sites = graph.sites.where(layer=9, role="value")
        with torch.no_grad(), record_steps(graph, [1]) as recorded:
            graph.pipe(STIPPLE[0][0], generator=torch.Generator().manual_seed(0), output_type="latent", **SMALL)
        target = graph.text.conditions([STIPPLE[0][1]])
        return PatchingMetric(graph, recorded[0][0], target, sites.paths), [graph.module(site) for site in sites]

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
def test_the_loss_is_scaled_by_a_power_of_two_in_half_precision_alone(dtype, parts):
    metric, _ = parts(dtype)
    assert metric.dtype == dtype
    assert metric.scale == 2.0 ** round(torch.tensor(metric.scale).log2().item())
    assert (metric.scale == 1.0) is (dtype not in HALF)
    with torch.no_grad():
        plain = metric(torch.tensor([[0.5]]))
    with torch.enable_grad():
        torch.testing.assert_close(metric(torch.tensor([[0.5]])).detach(), plain * metric.scale)


def test_a_scale_at_which_gradients_overflow_is_made_smaller(parts):
    metric, modules = parts(torch.float16)
    expected = attribute(metric, modules, "gradient", 1, 16)
    metric.scale *= 2.0**18
    torch.testing.assert_close(attribute(metric, modules, "gradient", 1, 16), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    assert metric.scale < 2.0**18
    metric.scale *= 2.0**60
    said = "the gradients are NaN or infinite in torch.float16, at every scale of the loss; load the pipeline in a wider format, such as"
    with pytest.raises(ns.NonFiniteActivation, match=re.escape(said)):
        attribute(metric, modules, "gradient", 1, 16)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_predictions_that_overflow_are_refused(dtype):
    pipe = cast(tiny.sd1(), dtype)
    pipe.unet.conv_out.weight.data *= torch.finfo(dtype).max
    with pytest.raises(
        ns.NonFiniteActivation, match=f"the prediction at step 1 is NaN or infinite in {dtype}; load the pipeline in a wider"
    ):
        run(pipe)


def test_a_gradient_that_is_no_number_is_refused_in_float32(parts):
    metric, modules = parts(torch.float32)
    metric.length = 0.0
    with pytest.raises(ns.NonFiniteActivation, match="the gradients are NaN or infinite in torch.float32"):
        attribute(metric, modules, "integrated", 1, 16)
