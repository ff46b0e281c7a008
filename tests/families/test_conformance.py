"""What every family must satisfy on every tiny pipeline. A new family needs one line in `tiny.PIPELINES`."""

import inspect
import re

import pytest
import torch
from torch import nn

from neuroscope import HookGraph
from neuroscope.core.sites import BESIDE_LAYERS, ROLES
from neuroscope.pipeline.families import FAMILIES, family_of
from neuroscope.pipeline.weights import outgoing_norm
from tests.families import tiny
from tests.numerics import close

STEPS = 2

_STABLE = {"down.0": 2, "down.1": 2, "down.2": 2, "mid": 1, "up.1": 3, "up.2": 3, "up.3": 3}
#: The published order of cross-attention layers: how many stand in each block.
BLOCKS = {
    "sd1": _STABLE,
    "sd2": _STABLE,
    "animatediff": _STABLE,
    "sdxl": {"down.1": 4, "down.2": 20, "mid": 10, "up.0": 30, "up.1": 6},
    "if-1": {"down.1": 3, "down.2": 3, "down.3": 3, "mid": 1, "up.0": 4, "up.1": 4, "up.2": 4},
    "if-2": {"down.3": 5, "down.4": 5, "mid": 1, "up.0": 6, "up.1": 6},
    "pixart": {f"block.{number}": 1 for number in range(16)},
    "sana": {f"block.{number}": 1 for number in range(12)},
    "stable-audio": {f"block.{number}": 1 for number in range(12)},
    "ltx": {f"block.{number}": 1 for number in range(12)},
    "wan": {f"block.{number}": 1 for number in range(12)},
    "sd3": {f"block.{number}": 1 for number in range(12)},
    "flux": {f"joint.{number}": 1 for number in range(5)} | {f"single.{number}": 1 for number in range(4)},
    "chroma": {f"joint.{number}": 1 for number in range(5)} | {f"single.{number}": 1 for number in range(4)},
    "qwen": {f"block.{number}": 1 for number in range(12)},
    "qwen21": {f"block.{number}": 1 for number in range(12)},
    "hunyuandit": {f"block.{number}": 1 for number in range(12)},
    "audioldm2": {f"{block}.{encoder}": count for block, count in _STABLE.items() for encoder in ("gpt2", "t5")},
}
TRANSFORMERS = ("pixart", "sana", "stable-audio", "ltx", "wan", "hunyuandit", "sd3", "flux", "chroma", "qwen", "qwen21")
#: DeepFloyd's attentions have no feed-forward beside them, and Sana's is made of convolutions.
WITHOUT_FEED_FORWARD = ("if-1", "if-2", "sana")
#: The roles of a layer.
IN_LAYERS = tuple(role for role in ROLES if role not in BESIDE_LAYERS)


EVERY = tiny.PIPELINES | tiny.JOINT | tiny.PREFIX


@pytest.fixture(scope="module", params=EVERY)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> HookGraph:
    return HookGraph(EVERY[name]())


@pytest.fixture(scope="module")
def captured(model):
    with model.capture() as captured:
        tiny.draw(model.pipe, num_inference_steps=STEPS)
    return captured


@pytest.fixture(scope="module")
def order(model) -> list[str]:
    """The modules' paths in the order of their first call, seen by plain torch hooks in a real run."""
    seen: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, path=path: seen.setdefault(path) and None)
        for path, module in model.denoiser.named_modules()
    ]
    tiny.draw(model.pipe, num_inference_steps=1)
    for handle in handles:
        handle.remove()
    return list(seen)


def test_every_family_has_a_tiny_pipeline():
    assert {family_of(build()).name for build in EVERY.values()} == {family.name for family in FAMILIES}


def test_layers_are_counted_in_execution_order(model, name):
    found = [model.sites.where(layer=layer)[0].block for layer in model.sites.layers]
    expected = [block for block, count in BLOCKS[name].items() for _ in range(count)]
    if name == "audioldm2":  # the two encoders take turns
        expected = [f"{block}.{encoder}" for block, count in _STABLE.items() for _ in range(count) for encoder in ("gpt2", "t5")]
    assert found == expected


def test_sites_stand_in_the_order_of_their_calls(model, order):
    modules = [site.module for site in model.sites]
    places = [order.index(module) for module in modules]
    assert places == sorted(places)
    layers = [site.layer for site in model.sites if site.layer is not None]
    assert layers == sorted(layers)


def test_that_order_is_not_the_order_of_the_modules_names(model, name):
    """Of a UNet's modules the middle block stands last; a transformer's tenth block would stand before its second by its name."""
    executed = [site.module for site in model.sites.where(role="value")]
    named = [path for path, module in model.denoiser.named_modules() if path in executed]
    assert set(named) == set(executed)
    assert (sorted(executed) != executed) is (name in TRANSFORMERS)
    assert (named != executed and named[-1].startswith("mid_block")) is (name not in TRANSFORMERS)


def test_every_layer_has_every_role_once(model, name):
    expected = [role for role in IN_LAYERS if role != "feedforward" or name not in WITHOUT_FEED_FORWARD]
    for layer in model.sites.layers:
        found = model.sites.where(layer=layer)
        single = name in tiny.PREFIX or found[0].block.startswith("single")  # its other weights are the image's and the text's at once
        assert sorted(site.role for site in found) == (["key", "value"] if single else sorted(expected))


def test_the_pooled_text_is_a_site_where_there_is_one(model, name):
    assert len(model.sites.where(role="pooled")) == (name in ("sdxl", "if-1", "if-2", "hunyuandit", "sd3", "flux"))


def test_the_text_before_all_blocks_is_a_site_where_these_rewrite_it(model, name):
    assert len(model.sites.where(role="context")) == (name in tiny.JOINT)


def test_every_site_runs_as_often_as_the_denoiser(model, captured):
    with tiny.counted(model.denoiser) as calls:
        tiny.draw(model.pipe, num_inference_steps=STEPS)
    for site in model.sites:
        assert captured[site.path].shape[:2] == (len(calls), calls[0])


def test_widths_are_those_of_the_tensors_and_of_the_weights(model, captured):
    for site in model.sites:
        assert captured[site.path].shape[-1] == site.width
        module = model.module(site)
        if isinstance(module, nn.Linear):
            assert site.width == (module.in_features if site.before_module else module.out_features)


def test_only_text_sites_are_the_same_at_every_step(model, captured):
    for site in model.sites:
        first, second = captured[site.path].unflatten(0, (STEPS, -1))  # some families call their denoiser twice a step
        assert torch.equal(first, second) is (site.text_only or site.role == "pooled")


def test_only_text_sites_are_the_same_for_every_noise(model, captured):
    with model.capture() as again:
        tiny.draw(model.pipe, seed=7, num_inference_steps=STEPS)
    for site in model.sites:
        first = site.layer == 0 and site.path in model.spec.rewritten  # of prompt and step, before any block has rewritten the text
        assert torch.equal(again[site.path], captured[site.path]) is (site.text_only or site.role == "pooled" or first)


def test_text_sites_have_a_token_axis_and_the_others_the_images_places(model, captured):
    length = model.spec.token_count
    for site in model.sites:
        shape = captured[site.path].shape
        if site.role == "pooled":
            assert len(shape) == 3
        else:
            places = (256, 128, 64, 32, 17, 16, 8, 4, 2, 1)  # a sound's are twice as many in time as in frequency
            tokens = 8 if site.path in model.spec.wordless else length + model.spec.tokens_beside
            assert (shape[2] == tokens) if site.text_only or site.path in model.spec.rewritten else (shape[2] in places)


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_conditional_rows_carry_the_prompts_and_in_their_order(model, scale):
    prompts = [tiny.PROMPT, tiny.OTHER]
    apart = {"true_cfg_scale": scale, "negative_prompt": ["", ""]} if model.family.encodes_apart else {}
    known = "guidance_scale" in inspect.signature(type(model.pipe).__call__).parameters
    with model.capture(model.sites.where(text_only=True)) as captured:
        tiny.draw(model.pipe, prompts, num_inference_steps=1, **apart, **({"guidance_scale": scale} if known else {}))
    conditions = model.text.conditions(prompts)
    for site in captured.sites:
        with torch.no_grad():
            expected = model.module(site)(model.text.read(site, conditions))
        torch.testing.assert_close(captured.select(site.path, rows="conditional")[0][:, : expected.shape[1]], expected)
        assert captured[site.path].shape[:2].numel() == (4 if scale > 1 else 2)


def test_outgoing_norms_are_what_one_unit_of_a_neuron_moves(model, name):
    for site in model.sites.where(layer=[0, 6, 8, len(model.sites.layers) - 1]):
        inside = ".attn." if name in tiny.JOINT | tiny.PREFIX else ".attn2"
        block = (
            model.denoiser.get_submodule(re.split(rf"{re.escape(inside)}|\.ff|\.img_mlp", site.module)[0])
            if not name.startswith("if")
            else None
        )
        attention = (
            getattr(block, inside.strip(".")) if block else model.denoiser.get_submodule(site.module.split(".to_")[0].split(".add_")[0])
        )
        single = site.block.startswith("single") or name in tiny.PREFIX
        key = attention.add_k_proj if not block or (name in tiny.JOINT and not single) else attention.to_k
        units = torch.eye(site.width, dtype=torch.float64)

        def grouped(moved, attention=attention, site=site):
            """Heads of queries that share one of keys and values: a neuron moves what any of them does."""
            if len(moved) == site.width:
                return moved
            shared = len(moved) // site.width
            heads = moved.unflatten(0, (attention.heads // shared, shared, len(moved) // attention.heads))
            return heads.transpose(1, 2).flatten(0, 1).flatten(1)

        def slope(linear, inputs):
            return linear(inputs) - linear(torch.zeros_like(inputs))

        with torch.no_grad():
            if site.block.startswith("single") and site.role == "value":  # what reads the heads reads more behind them
                moved = slope(block.proj_out, torch.eye(block.proj_out.in_features, dtype=torch.float64))[: site.width]
            elif site.role in ("value", "heads"):
                wide = torch.eye(attention.to_out[0].in_features, dtype=torch.float64)
                moved = grouped(slope(attention.to_out[0], wide))
            elif site.role == "feedforward":
                moved = slope(getattr(block, {"wan": "ffn", "qwen": "img_mlp"}.get(name, "ff")).net[2], units)
            elif site.role == "key":  # a key neuron meets one query neuron, whatever the image's channel it comes from
                moved = grouped(slope(attention.to_q, torch.eye(attention.to_q.in_features, dtype=torch.float64)).T)
            elif site.role == "query":
                moved = slope(key, torch.eye(key.in_features, dtype=torch.float64)).T
                if len(moved) < site.width:  # two heads of queries in a row meet the same keys
                    moved = moved.unflatten(0, (-1, 16)).repeat_interleave(2, dim=0).flatten(0, 1)
            else:  # added to the residual stream as it is
                moved = units
        close(outgoing_norm(model.family, model.denoiser, site), moved.norm(dim=1))


def test_the_prompt_is_heard(model):
    """Otherwise no test of an effect could fail."""
    first, second = (tiny.draw(model.pipe, prompt) for prompt in (tiny.PROMPT, tiny.OTHER))
    assert (first - second).norm() > 0.1 * first.norm()
