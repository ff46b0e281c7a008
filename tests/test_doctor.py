import pytest
import torch
from diffusers import StableDiffusionPAGPipeline

from neuroscope import HookGraph, UnsupportedModel
from neuroscope.doctor import diagnose
from tests.families import tiny


def states(pipe) -> dict[str, str]:
    return {finding.name: finding.state for finding in diagnose(pipe) if finding.state != "fine"}


class Unlike:
    """A processor of a name that nobody knows."""


def compile_denoiser(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def chunk_feed_forwards(pipe):
    for module in pipe.unet.modules():
        if hasattr(module, "set_chunk_feed_forward"):
            module.set_chunk_feed_forward(2, dim=1)


SPOILERS = {
    "fused projections": ("wrong", lambda pipe: pipe.unet.fuse_qkv_projections()),
    "chunked feed-forward": ("wrong", chunk_feed_forwards),
    "compiled denoiser": ("wrong", compile_denoiser),
    "replaced attention processors": ("note", lambda pipe: pipe.unet.set_attn_processor(Unlike())),
    "attention slicing": ("note", lambda pipe: pipe.enable_attention_slicing()),
    "layerwise casting": ("note", lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)),
}


@pytest.mark.parametrize("spoiled", SPOILERS)
def test_each_state_is_found_and_nothing_else(fresh, spoiled):
    state, spoil = SPOILERS[spoiled]
    spoil(fresh)
    expected = {spoiled: state}
    assert states(fresh) == expected


def test_a_plain_pipeline_is_fine(pipe):
    assert states(pipe) == {}
    assert diagnose(pipe)[0].meaning == "stable-diffusion-unet, read from UNet2DConditionModel"


@pytest.mark.parametrize("spoiled", ["fused projections", "chunked feed-forward"])
def test_what_is_wrong_by_family_is_what_the_graph_refuses(fresh, spoiled):
    SPOILERS[spoiled][1](fresh)
    (meaning,) = (finding.meaning for finding in diagnose(fresh) if finding.name == spoiled)
    with pytest.raises(UnsupportedModel, match=meaning[:30]):
        HookGraph(fresh)


def test_other_guidance_is_wrong(fresh):
    other = StableDiffusionPAGPipeline(**fresh.components, requires_safety_checker=False)
    assert states(other)["other guidance"] == "wrong"


def test_nothing_is_changed(pipe):
    before = tiny.hooks(pipe)
    diagnose(pipe)
    assert tiny.hooks(pipe) == before
