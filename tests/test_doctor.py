import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    LayerSkipConfig,
    PyramidAttentionBroadcastConfig,
    StableDiffusionSAGPipeline,
    StableDiffusionXLModularPipeline,
    apply_layer_skip,
    apply_pyramid_attention_broadcast,
)
from optimum.quanto import freeze, qint8, quantize
from peft import LoraConfig

from neuroscope import HookGraph, UnsupportedModel
from neuroscope.pipeline.doctor import diagnose
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


def broadcast(pipe):
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2, cross_attention_block_identifiers=("attentions",), current_timestep_callback=lambda: 500
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)


def skip_layers(pipe):
    config = LayerSkipConfig(indices=[0], fqn="down_blocks.1.attentions.0.transformer_blocks", skip_attention=True, skip_ff=False)
    apply_layer_skip(pipe.unet, config)


def add_lora(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"]))


def quantise(pipe):
    quantize(pipe.unet, weights=qint8)
    freeze(pipe.unet)


def offload_by_groups(pipe):
    pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


SPOILERS = {
    "fused projections": ("wrong", lambda pipe: pipe.unet.fuse_qkv_projections()),
    "chunked feed-forward": ("wrong", chunk_feed_forwards),
    "compiled denoiser": ("note", compile_denoiser),
    "replaced attention processors": ("note", lambda pipe: pipe.unet.set_attn_processor(Unlike())),
    "attention slicing": ("note", lambda pipe: pipe.enable_attention_slicing()),
    "cached or skipped layers": ("wrong", broadcast),
    "cached or skipped layers, by layer skip": ("wrong", skip_layers),
    "offload": ("note", lambda pipe: pipe.enable_model_cpu_offload(device="cpu")),
    "offload, sequential": ("note", lambda pipe: cpu_offload(pipe.unet, torch.device("cpu"))),
    "offload, by groups": ("note", offload_by_groups),
    "quantised weights": ("note", quantise),
    "LoRA": ("note", add_lora),
    "layerwise casting": ("note", lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float64)),
}


@pytest.mark.parametrize("spoiled", SPOILERS)
def test_each_state_is_found_and_nothing_else(fresh, spoiled):
    state, spoil = SPOILERS[spoiled]
    spoil(fresh)
    expected = {spoiled.partition(", ")[0]: state}
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


def test_a_pipeline_whose_batches_hold_something_else_is_wrong(fresh):
    other = StableDiffusionSAGPipeline(**fresh.components, requires_safety_checker=False)
    assert states(other) == {"unknown kind of pipeline": "wrong"}


def test_dropout_in_train_mode_is_wrong(fresh):
    fresh.text_encoder.add_module("extra", torch.nn.Dropout(0.1).eval())
    assert states(fresh) == {}
    fresh.text_encoder.train()
    assert states(fresh) == {"train mode": "wrong"}


def test_pipelines_that_do_not_say_when_they_run_are_wrong():
    """Modular pipelines run blocks, and have no method that every run begins with."""
    pipe = StableDiffusionXLModularPipeline()
    pipe.update_components(unet=tiny.PIPELINES["sdxl"]().unet)
    assert states(pipe) == {"unknown kind of pipeline": "wrong"}
    known = "StableDiffusionXLModularPipeline has no encode_prompt, .* give an ordinary pipeline of diffusers for the same denoiser"
    with pytest.raises(UnsupportedModel, match=known):
        HookGraph(pipe)


def test_nothing_is_changed(pipe):
    before = tiny.hooks(pipe)
    diagnose(pipe)
    assert tiny.hooks(pipe) == before
