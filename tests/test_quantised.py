"""Quantised denoisers, by five libraries for real: activations are read and changed as they are, and what needs weights says so.

torchao and bitsandbytes are large, so they are tested where they are installed.
"""

from collections.abc import Callable
from typing import Any

import gguf
import pytest
import torch
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
from optimum import quanto
from torch import nn

from neuroscope import HookGraph, InvalidInput, NeuronMask, Neurons, UnsupportedModel, WeightedNorm, Welch, fold, load, record, save, score
from neuroscope.generation.keys import fingerprint
from neuroscope.pipeline.doctor import diagnose
from neuroscope.pipeline.weights import outgoing_norm
from tests.families import tiny

pytestmark = pytest.mark.filterwarnings("ignore")


def replaced(root: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A model with other modules in place of its attentions' linear ones."""
    for path, module in list(root.named_modules()):
        if type(module) is nn.Linear and "attn2" in path:
            parent, _, name = path.rpartition(".")
            setattr(root.get_submodule(parent), name, make(module))
    return root


def by_torch(unet: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(unet, {nn.Linear}, dtype=torch.qint8)


def by_quanto(unet: Any) -> Any:
    quanto.quantize(unet, weights=quanto.qint8)
    quanto.freeze(unet)
    return unet


def by_gguf(unet: Any) -> Any:
    def make(linear: nn.Linear) -> nn.Module:
        packed = gguf.quants.quantize(linear.weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
        made = GGUFLinear(linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=torch.float32)
        made.weight = GGUFParameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType.Q8_0)
        made.bias = linear.bias
        return made

    return replaced(unet, make)


def by_torchao(unet: Any) -> Any:
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(unet, torchao.Int8WeightOnlyConfig())
    return unet


def by_bitsandbytes(bits: int) -> Callable[[Any], Any]:
    def quantise(unet: Any) -> Any:
        bnb = pytest.importorskip("bitsandbytes")

        def make(linear: nn.Linear) -> nn.Module:
            kind, options = (bnb.nn.Linear8bitLt, {"has_fp16_weights": False}) if bits == 8 else (bnb.nn.Linear4bit, {})
            made = kind(linear.in_features, linear.out_features, bias=linear.bias is not None, **options)
            made.load_state_dict(linear.state_dict())
            return made.to("cpu")

        return replaced(unet, make)

    return quantise


LIBRARIES = {
    "torch": by_torch,
    "quanto": by_quanto,
    "gguf": by_gguf,
    "torchao": by_torchao,
    "bitsandbytes, 8 bits": by_bitsandbytes(8),
    "bitsandbytes, 4 bits": by_bitsandbytes(4),
}


def single() -> Any:
    """The tiny pipeline in float32: the libraries compute in nothing wider."""
    pipe = tiny.sd1()
    for part in (pipe.text_encoder, pipe.vae, pipe.unet):
        part.float()
    return pipe


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def graph(library) -> HookGraph:
    pipe = single()
    pipe.unet = LIBRARIES[library](pipe.unet)
    return HookGraph(pipe)


@pytest.fixture(scope="module")
def site(graph):
    return graph.sites.where(layer=8, role="value")[0]


def test_activations_are_what_the_modules_give(graph, site):
    with graph.capture([site]) as captured:
        tiny.draw(graph.pipe, num_inference_steps=1, guidance_scale=1.0)  # such layers may round by the range of a whole batch
    torch.testing.assert_close(captured[site.path][0], graph.module(site)(graph.text.encode([tiny.PROMPT])))


def test_a_mask_reaches_what_the_modules_give(graph, site):
    before = tiny.draw(graph.pipe)
    with graph.apply(NeuronMask(Neurons.at(graph.sites, {site.path: range(8)}), fill=2.0)), graph.capture([site]) as captured:
        assert not torch.equal(tiny.draw(graph.pipe), before)
    assert (captured.select(site.path, rows="conditional")[..., :8] == 2.0).all()
    assert torch.equal(tiny.draw(graph.pipe), before)


def test_a_recording_leaves_out_the_norms_and_methods_that_need_them_say_so(graph, concept, tmp_path):
    recording = record(graph, concept, graph.sites.where(layer=8, role="value"), quiet=True)
    save(recording, tmp_path / "recording.safetensors")
    for each in (recording, load(tmp_path / "recording.safetensors")):
        assert not each.outgoing
        assert len(score(each, Welch()).top(4)) == 1
        with pytest.raises(
            InvalidInput, match="the weights that read unet.* are quantised, so their norms are not known; use a method without"
        ):
            score(each, WeightedNorm())


def test_what_reads_or_writes_weights_is_refused_by_name(graph, site):
    with pytest.raises(UnsupportedModel, match="is quantised .*, so its weights cannot be read; load it unquantised"):
        outgoing_norm(graph.family, graph.denoiser, site)
    with pytest.raises(UnsupportedModel, match="which cannot be changed exactly; load the model in a floating-point format"):
        fold(graph, NeuronMask(Neurons.at(graph.sites, {site.path: range(8)}), rows="all"))


def test_the_doctor_sees_it(graph):
    assert [finding.name for finding in diagnose(graph.pipe) if finding.state == "note"] == ["quantised weights"]


def test_fingerprints_tell_weights_apart(graph, library):
    before = fingerprint(graph)
    tiny.draw(graph.pipe, num_inference_steps=1)
    assert fingerprint(graph) == before
    again, other = single(), single()
    with torch.no_grad():
        other.unet.get_submodule(graph.sites.where(layer=8, role="value")[0].module).weight[0].neg_()
    again.unet, other.unet = LIBRARIES[library](again.unet), LIBRARIES[library](other.unet)
    assert fingerprint(HookGraph(again)) == before
    assert fingerprint(HookGraph(other)) != before
