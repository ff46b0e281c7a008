"""Published topologies, from their configs alone, against counts that others give (see the sources beside each)."""

import json

import diffusers
import pytest
import torch

from benchmarks.topologies import (
    FLUX_DEV,
    FLUX_SCHNELL,
    HUNYUANDIT,
    HUNYUANDIT_1_2,
    IF_I_XL,
    IF_II_L,
    PIXART,
    PUBLISHED,
    SD3,
    SD3_5_MEDIUM,
    SD_V1,
    SD_V2,
    SDXL,
)
from neuroscope import InvalidInput, Sites, UnsupportedModel, sites_from_config
from neuroscope.cli import main

_AUDIO = 2 * (2 * 256 + 2 * 384 + 2 * 640 + 640 + 3 * 640 + 3 * 384 + 3 * 256)
#: By model: layers, channels that keys and values read, key neurons and feed-forward neurons of all layers.
COUNTS = {
    "SD v1": (16, 768, 12_480, 49_920),
    "SD v2": (16, 1024, 12_480, 49_920),
    "AnimateDiff": (16, 768, 12_480, 49_920),  # those of SD v1, and none of motion modules
    "OpenJourney": (16, 768, 12_480, 49_920),
    "SDXL": (70, 2048, 83_200, 332_800),
    "DeepFloyd IF-I-XL": (22, 2816, 3 * 1408 + 3 * 2112 + 3 * 2816 + 2816 + 4 * 2816 + 4 * 2112 + 4 * 1408, 0),
    "DeepFloyd IF-II-L": (23, 1280, 5 * 960 + 5 * 1280 + 1280 + 6 * 1280 + 6 * 960, 0),
    "PixArt-α": (28, 1152, 28 * 1152, 28 * 4 * 1152),  # behind the projection of the text's 4096 channels
    "PixArt-Σ": (28, 1152, 28 * 1152, 28 * 4 * 1152),
    "Stable Audio": (24, 768, 24 * 768, 24 * 4 * 1536),  # half as many keys as queries
    "AudioLDM 2": (32, {768, 1024}, _AUDIO, 4 * _AUDIO),
    "Sana 1.6B": (20, 2240, 20 * 2240, 0),  # behind the projection of Gemma's 2304 channels; feed-forwards are convolutions
    "Sana 0.6B": (28, 1152, 28 * 1152, 0),
    "LTX-Video": (28, 2048, 28 * 2048, 28 * 4 * 2048),  # behind the projection of T5's 4096 channels
    "HunyuanDiT 1.1": (40, 1024, 40 * 1408, 40 * 6144),  # channels of BERT's states, and of T5's behind their projection
    "HunyuanDiT 1.2": (40, 1024, 40 * 1408, 40 * 6144),
    "Wan 14B": (40, 5120, 40 * 5120, 40 * 13824),
    "Wan 1.3B": (30, 1536, 30 * 1536, 30 * 8960),
    "SD3 medium": (24, 1536, 24 * 1536, 24 * 4 * 1536),  # behind the projection of the text's 4096 channels
    "SD3.5 large": (38, 2432, 38 * 2432, 38 * 4 * 2432),
    "SD3.5 medium": (24, 1536, 24 * 1536, 24 * 4 * 1536),  # attentions of the image alone are no layers
    "FLUX.1 dev": (19 + 38, 3072, (19 + 38) * 3072, 19 * 4 * 3072),  # a single block's feed-forward reads text and image by one weight
    "FLUX.1 schnell": (19 + 38, 3072, (19 + 38) * 3072, 19 * 4 * 3072),
    "Chroma": (57, 3072, 57 * 3072, 19 * 4 * 3072),
    "Qwen-Image": (60, 3072, 60 * 3072, 60 * 4 * 3072),  # behind the projection of 3584 channels, which every block rewrites
    "Qwen-Image 2.1": (32, 4096, 32 * 4096, 0),  # a feed-forward is the text's and the image's at once
}
#: Weights in thousand millions, as stability.ai (2, 8.1 and 2.5) and Black Forest Labs (12) announced these models.
WEIGHTS = {
    "SD3 medium": (1.95, 2.1),
    "SD3.5 large": (8.05, 8.15),
    "SD3.5 medium": (2.45, 2.55),
    "FLUX.1 dev": (11.5, 12.0),
    "FLUX.1 schnell": (11.5, 12.0),
}
_BLOCKS = {number: f"block.{number}" for number in range(28)}
_FLUX = {number: f"joint.{number}" for number in range(19)} | {19 + number: f"single.{number}" for number in range(38)}
_STABLE = {0: "down.0", 2: "down.1", 4: "down.2", 6: "mid", 7: "up.1", 10: "up.2", 13: "up.3"}
#: The layers' places in execution order: from which number on, below which block.
PLACES = {
    "SD v1": _STABLE,
    "SD v2": _STABLE,
    "OpenJourney": _STABLE,
    "AnimateDiff": _STABLE,
    "SDXL": {0: "down.1", 4: "down.2", 24: "mid", 34: "up.0", 64: "up.1"},
    "DeepFloyd IF-I-XL": {0: "down.1", 3: "down.2", 6: "down.3", 9: "mid", 10: "up.0", 14: "up.1", 18: "up.2"},
    "DeepFloyd IF-II-L": {0: "down.3", 5: "down.4", 10: "mid", 11: "up.0", 17: "up.1"},
    "PixArt-α": _BLOCKS,
    "PixArt-Σ": _BLOCKS,
    "Sana 1.6B": {number: f"block.{number}" for number in range(20)},
    "Sana 0.6B": _BLOCKS,
    "LTX-Video": _BLOCKS,
    "HunyuanDiT 1.1": {number: f"block.{number}" for number in range(40)},
    "Wan 14B": {number: f"block.{number}" for number in range(40)},
    "Wan 1.3B": {number: f"block.{number}" for number in range(30)},
    "SD3 medium": {number: f"block.{number}" for number in range(24)},
    "SD3.5 large": {number: f"block.{number}" for number in range(38)},
    "SD3.5 medium": {number: f"block.{number}" for number in range(24)},
    "FLUX.1 dev": _FLUX,
    "FLUX.1 schnell": _FLUX,
    "Qwen-Image 2.1": {number: f"block.{number}" for number in range(32)},
    "Qwen-Image": {number: f"block.{number}" for number in range(60)},
}
#: Layers that the literature names (LOCOGEN's default, InstantStyle's style block, and two of Staniszewski et al. 2025).
NAMED = {
    ("SD v1", 8): "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v",
    ("SD v1", 9): "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v",
    ("SDXL", 45): "unet.up_blocks.0.attentions.1.transformer_blocks.1.attn2.to_v",
    ("SDXL", 55): "unet.up_blocks.0.attentions.2.transformer_blocks.1.attn2.to_v",
    ("DeepFloyd IF-I-XL", 17): "unet.up_blocks.1.attentions.3.add_v_proj",
    ("PixArt-α", 10): "transformer.transformer_blocks.10.attn2.to_v",
    ("LTX-Video", 10): "transformer.transformer_blocks.10.attn2.to_v",
    ("SD3.5 medium", 10): "transformer.transformer_blocks.10.attn.add_v_proj",
    ("FLUX.1 dev", 18): "transformer.transformer_blocks.18.attn.add_v_proj",
    ("FLUX.1 dev", 29): "transformer.single_transformer_blocks.10.attn.to_v",
}


@pytest.fixture(scope="module")
def sites() -> dict[str, Sites]:
    return {name: sites_from_config(config) for name, config in PUBLISHED.items()}


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_and_neurons_are_as_many_as_published(sites, name):
    found = sites[name]
    keys, feed_forward = found.where(role="key"), found.where(role="feedforward")
    layers, channels, key_neurons, feed_forward_neurons = COUNTS[name]
    several = channels if isinstance(channels, set) else {channels}
    assert found.layers == tuple(range(layers))
    assert keys.neuron_count == found.where(role="value").neuron_count == key_neurons
    assert feed_forward.neuron_count == feed_forward_neurons
    with torch.device("meta"):
        denoiser = getattr(diffusers, PUBLISHED[name].get("_class_name", "UNet2DConditionModel")).from_config(PUBLISHED[name])
    assert {denoiser.get_submodule(site.module).in_features for site in found.where(role=("key", "value"))} == several


@pytest.mark.parametrize(("encoder", "width"), [("gpt2", 768), ("t5", 1024)])
def test_half_of_the_layers_of_audioldm2_read_either_encoder(sites, encoder, width):
    keys = sites["AudioLDM 2"].where(block=f"*.{encoder}", role="key")
    with torch.device("meta"):
        denoiser = diffusers.AudioLDM2UNet2DConditionModel.from_config(PUBLISHED["AudioLDM 2"])
    assert len(keys) == 16
    assert {denoiser.get_submodule(site.module).in_features for site in keys} == {width}
    assert 346.9e6 < sum(each.numel() for each in denoiser.parameters()) < 347e6


@pytest.mark.parametrize("name", WEIGHTS)
def test_models_of_joint_attention_have_as_many_weights_as_announced(name):
    with torch.device("meta"):
        denoiser = getattr(diffusers, PUBLISHED[name]["_class_name"]).from_config(PUBLISHED[name])
    low, high = WEIGHTS[name]
    assert low * 1e9 < sum(each.numel() for each in denoiser.state_dict().values()) < high * 1e9  # places of the image are no parameters


@pytest.mark.parametrize("name", PLACES)
def test_layers_stand_in_execution_order(sites, name):
    blocks = [site.block for site in sites[name].where(role="value")]
    changes = {number: block for number, block in enumerate(blocks) if not number or blocks[number - 1] != block}
    assert changes == PLACES[name]


@pytest.mark.parametrize(("name", "layer"), NAMED)
def test_layers_have_the_names_that_the_literature_gives_them(sites, name, layer):
    assert sites[name].where(layer=layer, role="value").paths == (NAMED[name, layer],)


@pytest.mark.parametrize(
    ("config", "pooled"),
    [
        (SD_V1, ()),
        (SD_V2, ()),
        (SDXL, ("unet.add_embedding.linear_1",)),
        (IF_I_XL, ("unet.add_embedding.proj",)),
        (IF_II_L, ("unet.add_embedding.proj",)),
        (PIXART, ()),
        (HUNYUANDIT, ("transformer.time_extra_emb.extra_embedder.linear_1",)),
        (HUNYUANDIT_1_2, ("transformer.time_extra_emb.extra_embedder.linear_1",)),
        (SD3, ("transformer.time_text_embed.text_embedder.linear_1",)),
        (SD3_5_MEDIUM, ("transformer.time_text_embed.text_embedder.linear_1",)),
        (FLUX_DEV, ("transformer.time_text_embed.text_embedder.linear_1",)),
        (FLUX_SCHNELL, ("transformer.time_text_embed.text_embedder.linear_1",)),
    ],
)
def test_the_pooled_text_is_a_site_of_no_layer(config, pooled):
    found = sites_from_config(config).where(role="pooled")
    assert found.paths == pooled
    assert all(site.layer is None and site.label == "pooled" for site in found)


def test_the_command_reads_a_config_file(tmp_path, capsys, untyped):
    (tmp_path / "config.json").write_text(json.dumps(IF_I_XL))
    with pytest.raises(SystemExit, match="0"):
        main(["sites", "--config", str(tmp_path / "config.json"), "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert listed[0] | {"width": None} == {
        "path": "unet.add_embedding.proj",
        "layer": None,
        "block": "time",
        "role": "pooled",
        "width": None,
        "text_only": True,
    }
    assert [each["layer"] for each in listed if each["role"] == "key"] == list(range(22))


def test_the_command_reads_a_transformers_config(tmp_path, capsys, untyped):
    (tmp_path / "config.json").write_text(json.dumps(PIXART))
    with pytest.raises(SystemExit, match="0"):
        main(["sites", "--config", str(tmp_path / "config.json"), "--role", "value", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [each["path"] for each in listed] == [f"transformer.transformer_blocks.{layer}.attn2.to_v" for layer in range(28)]
    assert {each["width"] for each in listed} == {1152}


def test_the_command_reads_a_config_of_two_kinds_of_blocks(tmp_path, capsys, untyped):
    (tmp_path / "config.json").write_text(json.dumps(FLUX_DEV))
    with pytest.raises(SystemExit, match="0"):
        main(["sites", "--config", str(tmp_path / "config.json"), "--role", "key", "--json"])
    listed = json.loads(capsys.readouterr().out)[19:]
    assert [each["layer"] for each in listed] == list(range(19, 57))
    assert [each["path"] for each in listed] == [f"transformer.single_transformer_blocks.{number}.attn.to_k" for number in range(38)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no settings"),
        ('{"_class_name": "Nothing"}', "the config is of a 'Nothing', which is no model of diffusers"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        sites_from_config(tmp_path / "config.json")


def test_a_config_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read: No such file or directory; give a denoiser's config.json"):
        sites_from_config(tmp_path / "config.json")


def test_other_denoisers_are_refused():
    with pytest.raises(UnsupportedModel, match="this denoiser is a UNet1DModel, which neuroscope does not know"):
        sites_from_config({"_class_name": "UNet1DModel"})
