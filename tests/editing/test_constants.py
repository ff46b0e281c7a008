"""Constants as linear maps of what a LayerNorm gives, and fills that are exported by them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import neuroscope as ns
from neuroscope import HookGraph, InvalidInput, NeuronMask, Neurons, export_lora, fold
from neuroscope.editing.constants import MAX_ERROR, constant_at, constant_of
from tests.editing import checkpoints
from tests.editing.test_fold import CLOSE, a_map, mask
from tests.families import tiny
from tests.numerics import rounding


def shifted(pipe, seed=0):
    """A pipeline whose text encoder's last norm has gains and shifts, as trained ones have."""
    norm, random = pipe.text_encoder.final_layer_norm, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=random))
        norm.bias.copy_(0.3 + 0.5 * torch.randn(norm.bias.shape, generator=random))
    return pipe


@pytest.mark.parametrize("still", [0, 1, 3])
def test_the_row_gives_1_for_whatever_is_normalised(still):
    random = torch.Generator().manual_seed(still)
    gain, shift = torch.randn(24, generator=random).double(), torch.randn(24, generator=random).double()
    gain[:still] = 0
    found = constant_of(gain, shift)
    vectors = functional.layer_norm(torch.randn(50, 24, generator=random).double() ** 3, (24,), gain, shift)
    assert (vectors @ found.row - 1).abs().max() < rounding(scale=found.amplification)
    assert (vectors * found.row).abs().sum(dim=1).max() <= found.amplification + rounding()


def test_without_a_shift_nothing_is_constant():
    found = constant_of(torch.ones(4).double(), torch.zeros(4).double())
    assert found.error(torch.float32) == float("inf")


def test_roundings_of_row_and_vectors_stay_below_the_error():
    random = torch.Generator().manual_seed(0)
    gain, shift = 0.5 + torch.rand(64, generator=random).double(), 0.2 * torch.randn(64, generator=random).double()
    found = constant_of(gain, shift)
    vectors = functional.layer_norm(torch.randn(200, 64, generator=random).double(), (64,), gain, shift)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        product = vectors.to(dtype).double() @ found.row.to(dtype).double()
        assert (product - 1).abs().max() <= found.error(dtype, dtype) * (1 + torch.finfo(dtype).eps)


FILLS = {
    "values": lambda graph: [mask(graph, "value", fill=2.0)],
    "half of two masks": lambda graph: [mask(graph, "value", fill=1.0, strength=0.5), mask(graph, "value", fill=-3.0, strength=0.4)],
    "values behind a map": lambda graph: [a_map(graph), mask(graph, "value", fill=1.0), mask(graph, "key", fill=1.0)],
}


@pytest.fixture(scope="module")
def normed():
    return HookGraph(shifted(tiny.sd1()))


@pytest.mark.parametrize("name", FILLS)
def test_a_fill_of_values_is_one_more_rank_and_draws_the_folded_images(normed, tmp_path, name):
    changes = FILLS[name](normed)
    with fold(normed, *changes):
        expected = tiny.draw(normed.pipe)
    for form in ("diffusers", "kohya"):
        path = export_lora(normed, changes, tmp_path / f"{form}.safetensors", format=form)
        assert not any("bias" in key or "diff_b" in key for key in load_file(path))
        normed.pipe.load_lora_weights(path, adapter_name=form)
        try:
            torch.testing.assert_close(tiny.draw(normed.pipe), expected, rtol=0, atol=10 * CLOSE)
        finally:
            normed.pipe.unload_lora_weights()
    assert float((expected - tiny.draw(normed.pipe)).abs().max()) > 100 * CLOSE


def test_comfyuis_weights_give_every_token_its_fill(normed, tmp_path):
    made = mask(normed, "value", fill=2.0)
    file = load_file(export_lora(normed, made, tmp_path / "x.safetensors", format="kohya"))
    loaded, left = checkpoints.comfyui_load(normed.denoiser, file)
    (site,) = normed.sites.where(layer=8, role="value")
    values = normed.text.encode([tiny.PROMPT, ""]) @ loaded[f"{checkpoints.original(normed.denoiser.config, site.module)}.weight"].T
    assert not left
    assert (values[..., list(made.neurons[site.path])] - 2.0).abs().max() < 2.0 * MAX_ERROR


@pytest.mark.parametrize("role", ["heads", "feedforward"])
def test_where_a_module_has_a_bias_diffusers_loads_one(fresh, tmp_path, role):
    graph = HookGraph(fresh)  # diffusers rounds weights that it fuses and gives back
    changes = [mask(graph, role, fill=1.5)]
    with fold(graph, *changes):
        expected = tiny.draw(fresh)
    path = export_lora(graph, changes, tmp_path)
    fresh.load_lora_weights(path, adapter_name="edit")
    torch.testing.assert_close(tiny.draw(fresh), expected, rtol=0, atol=10 * CLOSE)
    fresh.fuse_lora()
    fresh.unfuse_lora()


def test_a_norm_without_a_shift_is_refused(graph, tmp_path):
    said = (
        r"the mask's fill adds a constant to .*attn2.to_v, which a LoRA can hold in float32 and float64 only with an error of any size, "
        r"because the text encoder's last norm has no shift; 0.1% is allowed; make the mask with fill=0, or write it into the weights "
        r"with ns.fold"
    )
    with pytest.raises(InvalidInput, match=said):
        export_lora(graph, mask(graph, "value", fill=1.0), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_too_narrow_is_refused(normed, tmp_path):
    said = r"can hold in float16 and float64 only with an error of up to \d+\.\d\d% of it; 0.1% is allowed; make the mask with fill=0, or"
    with pytest.raises(InvalidInput, match=said):
        export_lora(normed, mask(normed, "value", fill=1.0), tmp_path, dtype="float16")


def test_two_encoders_side_by_side_are_refused(tmp_path):
    graph = HookGraph(tiny.PIPELINES["sdxl"]())
    (site,) = graph.sites.where(layer=3, role="value")
    made = NeuronMask(Neurons.at(graph.sites, {site.path: [1]}), fill=1.0, rows="all")
    for form in ("diffusers", "kohya"):
        said = "which a LoRA can hold only where one text encoder ends in a LayerNorm with a gain and a shift; make the mask with fill=0"
        with pytest.raises(InvalidInput, match=said):
            export_lora(graph, made, tmp_path, format=form)
    assert export_lora(graph, replace(made, fill=0.0), tmp_path, format="kohya").is_file()


def test_layers_that_read_something_else_are_refused():
    graph = HookGraph(shifted(tiny.sd1()))
    sites = graph.sites.where(layer=8, role="value")
    graph.pipe.text_encoder.final_layer_norm.register_forward_hook(lambda _module, _args, output: output + 0.5)
    with pytest.raises(InvalidInput, match="only where layers read what the text encoder's last norm gives, and .*attn2.to_v does not"):
        constant_at(graph, sites, torch.float32)


def test_the_bundled_models_mask_with_its_fill_is_exported(tmp_path):
    """The readme's mask, on all rows: its file draws the folded images, within the stated error of the fill."""
    graph = HookGraph(ns.testbed.load("sd1"))
    concept = ns.Concept.style("stipple", prompts="testbed")
    recording = ns.record(graph, concept, graph.sites.where(layer=12, text_only=True), quiet=True)
    made = NeuronMask(ns.score(recording, ns.Welch()).top(28), fill=recording.mean("absent"), rows="all")
    path = export_lora(graph, made, tmp_path / "no-stipple.safetensors", format="kohya")

    def draw():
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        return graph.pipe("a red circle in the style of stipple", **options).images

    untouched = draw()
    with fold(graph, made):
        folded = draw()
    graph.pipe.load_lora_weights(path)
    loaded = draw()
    assert (loaded - folded).norm() < 10 * MAX_ERROR * (folded - untouched).norm()
