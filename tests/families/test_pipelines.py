"""Pipelines that are refused by their class, their `encode_prompt`, or a part in train mode."""

import copy

import diffusers
import pytest
import torch
from torch import nn

from docs.pipelines import PAGE
from neuroscope import UnsupportedModel, sites_from_config
from neuroscope.pipeline.families import REFUSED_DENOISERS, REFUSED_PIPELINES, check_modes, missing_encode_parameters, refuse_pipeline
from tests.families import tiny
from tests.pipelines.build import PIPELINES


@pytest.mark.parametrize("name", REFUSED_PIPELINES)
def test_refused_classes_are_diffusers_own_and_so_is_what_to_use_instead(name):
    """A table of names could rot: every name but those of classes that diffusers has dropped exists."""
    assert hasattr(diffusers, name)
    instead = REFUSED_PIPELINES[name].instead
    assert not instead or hasattr(diffusers, instead)
    assert instead not in REFUSED_PIPELINES


@pytest.mark.parametrize("name", REFUSED_PIPELINES)
def test_a_refused_pipeline_and_a_subclass_of_it_say_why(name):
    for kind in (getattr(diffusers, name), type("MyPipeline", (getattr(diffusers, name),), {})):
        with pytest.raises(UnsupportedModel, match=f"{kind.__name__} is not supported: ") as refused:
            refuse_pipeline(object.__new__(kind))
        assert REFUSED_PIPELINES[name].reason in str(refused.value)
        assert f"use {REFUSED_PIPELINES[name].instead}.from_pipe(pipe)" in str(refused.value) or not REFUSED_PIPELINES[name].instead


#: By a known denoiser that has no family: a module that its reason is about.
NAMED = {
    "CogVideoXTransformer3DModel": "transformer_blocks.0.attn1.to_k",
    "CogView4Transformer2DModel": "transformer_blocks.0.attn1.to_k",
    "Lumina2Transformer2DModel": "context_refiner.0.attn.to_k",
    "ZImageTransformer2DModel": "context_refiner.0.attention.to_k",
    "Krea2Transformer2DModel": "text_fusion",
    "Flux2Transformer2DModel": "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
}


@pytest.mark.parametrize("name", REFUSED_DENOISERS)
def test_a_known_denoiser_without_a_family_says_why(name):
    kind = getattr(diffusers, name)
    with torch.device("meta"):
        denoiser = kind()
    modules = dict(denoiser.named_modules())
    assert NAMED[name] in modules
    assert not any("add_k_proj" in path for path in modules) or name == "Flux2Transformer2DModel"
    with pytest.raises(UnsupportedModel, match=f"is a {name}, which is not supported: ") as refused:
        sites_from_config({"_class_name": name})
    assert REFUSED_DENOISERS[name] in str(refused.value)
    assert f"| `{name}` | {REFUSED_DENOISERS[name]} | – |" in PAGE.read_text()


@pytest.mark.parametrize("name", [name for name, example in PIPELINES.items() if not example.refusal])
def test_other_pipelines_are_not_refused_by_their_class(name):
    refuse_pipeline(object.__new__(getattr(diffusers, PIPELINES[name].kind)))


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("StableDiffusionPipeline", []),
        ("StableDiffusionXLPipeline", []),
        ("IFPipeline", []),
        ("StableDiffusionInstructPix2PixPipeline", []),
        ("StableDiffusionLatentUpscalePipeline", ["num_images_per_prompt"]),
        ("LEditsPPPipelineStableDiffusion", ["prompt", "do_classifier_free_guidance"]),
    ],
)
def test_parameters_that_an_encoder_lacks(kind, missing):
    assert missing_encode_parameters(object.__new__(getattr(diffusers, kind))) == missing


def test_a_pipeline_whose_encoder_lacks_parameters_is_refused(fresh):
    class Other(type(fresh)):
        def encode_prompt(self, prompt, device, **options):
            return super().encode_prompt(prompt, device, 1, False)

    refuse_pipeline(fresh)
    lacking = "Other is not supported: its encode_prompt takes no num_images_per_prompt and no do_classifier_free_guidance and no negative"
    with pytest.raises(UnsupportedModel, match=lacking):
        refuse_pipeline(Other(**fresh.components, requires_safety_checker=False))


def test_a_pipeline_without_text_is_refused():
    with pytest.raises(UnsupportedModel, match="StableDiffusionImageVariationPipeline is not supported: it has no text encoder"):
        refuse_pipeline(object.__new__(diffusers.StableDiffusionImageVariationPipeline))


class TestModes:
    def test_a_pipeline_as_it_is_loaded_is_fine(self, pipe):
        check_modes(pipe)

    def test_train_mode_without_dropout_is_fine(self, fresh):
        fresh.text_encoder.train()
        fresh.unet.train()
        check_modes(fresh)

    @pytest.mark.parametrize("component", ["text_encoder", "unet"])
    def test_dropout_in_train_mode_is_refused(self, fresh, component):
        getattr(fresh, component).add_module("extra", nn.Sequential(nn.Dropout(0.1)))
        getattr(fresh, component).eval()
        check_modes(fresh)
        getattr(fresh, component).train()
        words = rf"the {component} of this StableDiffusionPipeline is in train mode, in which extra.0 drops values at random .*"
        with pytest.raises(UnsupportedModel, match=rf"{words}; call pipe\.{component}\.eval\(\) first"):
            check_modes(fresh)

    def test_dropout_that_is_no_module_of_its_own_is_refused(self, fresh):
        """CLIP's attentions hold their rate as a number."""
        fresh.text_encoder = copy.deepcopy(fresh.text_encoder).train()
        attention = next(module for module in fresh.text_encoder.modules() if hasattr(module, "dropout"))
        attention.dropout = 0.1
        with pytest.raises(UnsupportedModel, match="drops values at random"):
            check_modes(fresh)

    def test_t5_as_it_is_constructed_is_refused(self):
        pipe = tiny.PIPELINES["if-1"]()
        pipe.text_encoder.train()  # T5's config has a dropout of 0.1, and no constructor leaves train mode
        with pytest.raises(UnsupportedModel, match="the text_encoder of this IFPipeline is in train mode"):
            check_modes(pipe)
