"""A ControlNet reads the prompt past all sites of the denoiser: what it carries is measured and reported."""

import pytest
import torch

from neuroscope import Concept, HookGraph, LatentShare, LocoGen, localize
from neuroscope.core.results.effects import CONTROL, POOLED
from neuroscope.pipeline.doctor import diagnose
from tests.families import tiny
from tests.pipelines.build import PIPELINES
from tests.pipelines.seen import hooked

CONCEPT = Concept("circle", present=["a red circle", "a blue circle"], absent=["a red star", "a blue star"])
LISTENING = 20.0  # so that what the net says of the prompt shows


def controlled(name):
    """A pipeline whose net says much of the prompt, and its options."""
    pipe = PIPELINES[name].build()
    with torch.no_grad():
        for path, module in pipe.controlnet.named_modules():
            if path.endswith(("attn2.to_k", "attn2.to_v", "attn2.to_out.0")) or "controlnet_down_blocks" in path:
                for parameter in module.parameters():
                    parameter.mul_(LISTENING)
    options = {option: value for option, value in PIPELINES[name].arguments().items() if option != "output_type"}
    return pipe, options | {"guidance_scale": 5.0}


def by_hand(pipe, options, source, target):
    """The share of a run in which a plain hook gives the net, and nothing else, the other prompt."""
    other = pipe.encode_prompt(target, pipe.device, 1, False)[0]

    def swap(_module, args, kwargs):
        context = kwargs["encoder_hidden_states"].clone()
        context[len(context) // 2 :] = other
        return args, kwargs | {"encoder_hidden_states": context}

    def run(prompt):
        noise = torch.Generator().manual_seed(0)
        return pipe(prompt, generator=noise, output_type="latent", **options).images[0].double()

    base, goal = run(source), run(target)
    with hooked(pipe.controlnet, before=swap):
        moved = run(source)
    return float(((moved - base) * (goal - base)).sum() / (goal - base).square().sum())


def test_the_share_of_the_net_is_what_a_plain_hook_on_it_makes():
    pipe, options = controlled("StableDiffusionControlNetPipeline")
    scores = localize(HookGraph(pipe), CONCEPT, LocoGen(), LatentShare(), seeds=[0], quiet=True, **options)
    expected = [by_hand(pipe, options, *pair) for pair in zip(CONCEPT.present, CONCEPT.absent, strict=True)]
    found = scores.effects.values[scores.effects.patches.index(CONTROL), :, 0]
    assert max(map(abs, expected)) > 0.01
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-5)
    share, low, high = scores.control_share
    assert low <= share <= high
    assert share == pytest.approx(float(found.sum()) / len(found), rel=1e-3)
    assert f"the control net carries {share:.0%}" in scores.verdict


def test_models_without_such_a_net_have_no_share(graph):
    assert graph.readers_beside == ()
    scores = localize(graph, CONCEPT, LocoGen(window=16), LatentShare(), seeds=[0], quiet=True, num_inference_steps=1, height=16, width=16)
    assert scores.control_share is None
    assert scores.pooled_share is None
    assert {CONTROL, POOLED}.isdisjoint(scores.effects.patches)


@pytest.mark.parametrize("name", ["StableDiffusionControlNetPipeline (two nets)", "StableDiffusionXLControlNetPipeline"])
def test_the_doctor_notes_the_net(name):
    pipe = PIPELINES[name].build()
    (found,) = (finding for finding in diagnose(pipe) if finding.name == "prompt read beside the denoiser")
    assert (found.state, found.meaning.partition(":")[0]) == ("note", "controlnet")


def test_the_doctor_has_nothing_to_note_of_a_plain_pipeline():
    (found,) = (finding for finding in diagnose(tiny.sd1()) if finding.name == "prompt read beside the denoiser")
    assert found.state == "fine"
