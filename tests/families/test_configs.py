"""Configs of denoisers that are unusual, or hostile: their sites, or a refusal in the house's words; never a bare error."""

import contextlib

import pytest
import torch

from neuroscope import HookGraph, InvalidInput, NeuroscopeError, UnsupportedModel, sites_from_config
from tests.families import tiny
from tests.pipelines import parts

SMALL = {
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
SITES = 4 * 6  # four layers of six roles
DOES_NOT_RUN = "this UNet2DConditionModel does not run with what its family .stable-diffusion-unet. is given"


@pytest.mark.parametrize(
    "config",
    [
        {"num_class_embeds": 1000, "in_channels": 7},
        {"cross_attention_dim": (8, 8)},
        {"cross_attention_dim": [8, 8]},
        {"time_cond_proj_dim": 8},
    ],
    ids=str,
)
def test_unusual_settings_that_hooks_can_serve(config):
    assert len(sites_from_config(SMALL | config)) == SITES


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"cross_attention_dim": [8, 16]}, UnsupportedModel, r"read contexts of \[8, 16\] channels, and one prompt has one context"),
        ({"cross_attention_dim": 0}, UnsupportedModel, "reads contexts of 0 channels"),
        ({"dual_cross_attention": True}, UnsupportedModel, DOES_NOT_RUN),
        (
            {"down_block_types": ["KDownBlock2D", "KCrossAttnDownBlock2D"], "up_block_types": ["KCrossAttnUpBlock2D", "KUpBlock2D"]},
            UnsupportedModel,
            DOES_NOT_RUN,
        ),
        ({"layers_per_block": -1}, UnsupportedModel, DOES_NOT_RUN),
        ({"in_channels": 0}, UnsupportedModel, DOES_NOT_RUN),
        ({"layers_per_block": 10**9}, InvalidInput, "layers_per_block=1000000000 is deeper than any model; give at most 1000"),
        ({"transformer_layers_per_block": [[10**7]]}, InvalidInput, "deeper than any model"),
        ({"block_out_channels": [10**9] * 2}, InvalidInput, "the config makes no UNet2DConditionModel: RuntimeError: .*give a denoiser's"),
        ({"block_out_channels": "abc"}, InvalidInput, "the config makes no UNet2DConditionModel: ValueError"),
        ({"attention_head_dim": None}, InvalidInput, "the config makes no UNet2DConditionModel: TypeError"),
        ({"act_fn": "bogus"}, InvalidInput, "activation function bogus not found"),
        ({"num_class_embeds": "many"}, InvalidInput, "the config makes no UNet2DConditionModel"),
        ({"_class_name": 7}, InvalidInput, "is of a 7, which is no model of diffusers"),
        ({"_class_name": "StableDiffusionPipeline"}, InvalidInput, "is of a '?StableDiffusionPipeline'?, which is no model of diffusers"),
        ({"_class_name": "ModelMixin"}, InvalidInput, "which is no model of diffusers"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_served_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        sites_from_config(SMALL | config)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("value", [None, -1, 0, float("nan"), "x", [], {}, [[1]], True], ids=repr)
def test_no_wrong_value_of_a_setting_ends_in_a_bare_error(name, value):
    with contextlib.suppress(NeuroscopeError):
        assert len(sites_from_config(SMALL | {name: value})) > 0


@pytest.mark.parametrize("given", [5, None, ["unet/config.json"]], ids=repr)
def test_what_is_neither_a_file_nor_settings_is_refused(untyped, given):
    with pytest.raises(InvalidInput, match="config is .*, which .*; give "):
        sites_from_config(given)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": '], ids=["deep", "long", "cut"])
def test_files_that_json_does_not_read_are_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidInput, match="is not JSON"):
        sites_from_config(tmp_path / "config.json")


def test_a_graph_of_a_unet_that_does_not_run_is_refused(pipe):
    with torch.device("meta"):
        unet = parts.unet(dual_cross_attention=True, cross_attention_dim=96)
    with pytest.raises(UnsupportedModel, match=DOES_NOT_RUN):
        HookGraph(tiny.with_parts(pipe, unet=unet))
