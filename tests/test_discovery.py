import re
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.sana_transformer import GLUMBConv
from diffusers.models.transformers.transformer_ltx import LTXAttention
from diffusers.models.transformers.transformer_wan import WanAttention

from neuroscope import HookGraph
from neuroscope.generation.batches import bytes_an_image
from neuroscope.pipeline.discovery import find_components, find_sites, row_bytes, stage_shares
from neuroscope.pipeline.families.unets.unet import UNET
from tests.families import tiny

#: The published config of SDXL's UNet, 2.6 billion parameters.
SDXL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD14 = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


#: How many components causal tracing restores, where that is published.
COMPONENTS = {"sd1": 70, "sd2": 70, "sdxl": 227, "if-1": 22 + 36}


def on_meta(config: dict) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def pooled_inputs(denoiser, size=None) -> dict:
    added = {"text_embeds": torch.zeros(1, 1280, device="meta"), "time_ids": torch.zeros(1, 6, device="meta")}
    return UNET.inputs(denoiser, size) | {"added_cond_kwargs": added}


def kind_of(path: str, module) -> str | None:
    """By class, not by name: what causal tracing restores; of an attention that adds its residual stream itself, what it adds."""
    if "motion_modules" in path:  # they read no text and hold no frame's positions
        return None
    if isinstance(module, Attention) and module.added_kv_proj_dim is None:
        return "cross" if module.is_cross_attention else "self"
    if isinstance(module, WanAttention | LTXAttention):  # of the latter, text alone is given without positions
        return "cross" if getattr(module, "is_cross_attention", path.endswith("attn2")) else "self"
    if re.search(r"\.attentions\.\d+\.to_out\.0$", path):
        return "cross"
    return {FeedForward: "ff", GLUMBConv: "ff", ResnetBlock2D: "resnet"}.get(type(module))


class TestPlaces:
    @pytest.mark.parametrize("name", tiny.PIPELINES)
    def test_they_are_the_components_that_a_real_run_calls_in_its_order(self, name):
        pipe = tiny.PIPELINES[name]()
        graph, called, handles = HookGraph(pipe), [], []
        for path, module in graph.denoiser.named_modules():
            if kind := kind_of(path, module):
                hook = lambda *_, path=path, kind=kind: called.append((f"{graph.family.component}.{path}", kind))  # noqa: E731
                handles.append(module.register_forward_pre_hook(hook))
        sizes = {} if name in ("sana", "audioldm2", "stable-audio", "ltx", "wan") else {"height": 16, "width": 16}
        tiny.draw(pipe, num_inference_steps=1, **sizes, **({"guidance_scale": 1.0} if name == "wan" else {}))  # else two calls a step
        for handle in handles:
            handle.remove()
        assert [(place.path, place.kind) for place in graph.components] == called
        assert len(called) == len(handles) == COMPONENTS.get(name, len(handles))

    @pytest.mark.parametrize(("kind", "count"), [("cross", 16), ("self", 16), ("ff", 16), ("resnet", 22)])
    def test_each_kind_is_numbered_from_zero(self, graph, kind, count):
        places = [place for place in graph.components if place.kind == kind]
        assert [place.number for place in places] == list(range(count))
        assert [str(place) for place in places] == [f"{kind} {number}" for number in range(count)]

    def test_cross_attentions_are_the_layers_in_their_blocks(self, graph):
        for place in graph.components:
            if place.kind == "cross":
                sites = graph.sites.where(layer=place.number, role=["key", "value"])
                assert {site.path.rpartition(".")[0] for site in sites} == {place.path}
                assert {site.block for site in sites} == {place.block}
        assert {place.block for place in graph.components} == {f"{way}.{number}" for way in ("down", "up") for number in range(4)} | {"mid"}

    @pytest.mark.parametrize(
        ("config", "family", "counts"),
        [
            (SD14, UNET, {"cross": 16, "self": 16, "ff": 16, "resnet": 22}),
            (SDXL, replace(UNET, inputs=pooled_inputs), {"cross": 70, "self": 70, "ff": 70, "resnet": 17}),
        ],
        ids=["SD v1.4, 70 places", "SDXL, 227 places"],
    )
    def test_published_models_have_the_published_numbers(self, config, family, counts):
        """Basu et al. (2023) count 70 and 227 components; no weights are needed to find them."""
        denoiser = on_meta(config)
        places = find_components(family, denoiser)
        assert {kind: sum(place.kind == kind for place in places) for kind in counts} == counts
        assert len(places) == sum(counts.values())
        middle = [index for index, place in enumerate(places) if place.block == "mid"]
        assert middle == list(range(middle[0], middle[-1] + 1))
        assert all(place.block.startswith("down") for place in places[: middle[0]])
        assert all(place.block.startswith("up") for place in places[middle[-1] + 1 :])

    def test_no_hook_is_left(self, fresh):
        graph = HookGraph(fresh)
        graph.components  # noqa: B018
        bytes_an_image(graph)
        assert tiny.hooks(fresh) == []


def test_the_layers_of_sdxl_are_in_execution_order():
    """The down blocks' 24 layers, the mid block's 10 and the up blocks' 36, each block's transformer blocks by number."""
    denoiser = on_meta(SDXL)
    sites = find_sites(replace(UNET, inputs=pooled_inputs), denoiser).where(role="value")
    blocks = [("down.1", 4), ("down.2", 20), ("mid", 10), ("up.0", 30), ("up.1", 6)]
    assert [site.block for site in sites] == [block for block, count in blocks for _ in range(count)]
    numbers = [int(re.search(r"transformer_blocks\.(\d+)", site.path)[1]) for site in sites]
    assert numbers == [0, 1] * 2 + [*range(10)] * 6 + [0, 1] * 3
    assert sites.layers == tuple(range(70))


def test_a_published_models_row_takes_hundreds_of_megabytes():
    """All outputs of a row of Stable Diffusion v1 at 512 pixels, float32, scale with the image's area."""
    denoiser = on_meta(SD14)
    small, large = (row_bytes(UNET, denoiser, (side, side)) for side in (32, 64))
    assert 2**28 < large < 2**31
    assert 3.8 < large / small < 4.05


def test_shares_of_stages_do_not_depend_on_the_number_format():
    small = {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
    unet = tiny.build_unet(**small, block_out_channels=[32, 32], layers_per_block=1).eval()
    found = [stage_shares(UNET, each, UNET.inputs(each)) for each in (unet.float(), unet.bfloat16(), unet.double())]
    assert found[0] == found[1] == found[2]
    assert list(found[0].values()) == sorted(found[0].values(), reverse=True)
    assert len(found[0]) > 3
