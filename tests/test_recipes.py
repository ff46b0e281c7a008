"""How another process loads a pipeline again: what was loaded by name comes back with the same content, and all else is refused by name."""

import pickle
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from neuroscope import HookGraph, InvalidInput, testbed
from neuroscope.generation.keys import fingerprint
from neuroscope.generation.metering import count_elsewhere, metered
from neuroscope.pipeline.loading import Recipe, load_pipeline, recipe_of
from tests.families import tiny


def same_again(pipe):
    """Whether the recipe of a pipeline, sent to another process, makes a pipeline with the same content."""
    return fingerprint(HookGraph(pickle.loads(pickle.dumps(recipe_of(pipe)))())) == fingerprint(HookGraph(pipe))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_loaded_by_name_comes_back(dtype):
    pipe = load_pipeline("testbed:sd1", dtype=dtype)
    assert recipe_of(pipe) == Recipe("testbed:sd1", "cpu", dtype)
    assert same_again(pipe)


def test_a_pipeline_of_diffusers_own_comes_back_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(testbed.path("sd1").parent)
    pipe = DiffusionPipeline.from_pretrained("sd1", dtype=torch.float32)
    recipe = recipe_of(pipe)
    assert Path(recipe.model).is_absolute()
    monkeypatch.chdir(tmp_path)
    assert fingerprint(HookGraph(recipe())) == fingerprint(HookGraph(pipe))


def test_a_constructed_pipeline_comes_back():
    assert same_again(testbed.load("sd1/pair/3"))


def test_loras_come_back(tmp_path):
    pipe = load_pipeline("testbed:sd1")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights="gaussian"))
    state = {f"unet.{name}": value + 0.1 for name, value in get_peft_model_state_dict(pipe.unet).items()}
    save_file(state, tmp_path / "lora.safetensors")
    on_top = load_pipeline("testbed:sd1", loras=[str(tmp_path / "lora.safetensors")])
    assert fingerprint(HookGraph(on_top)) != fingerprint(HookGraph(testbed.load("sd1")))
    assert recipe_of(on_top).loras == (str(tmp_path / "lora.safetensors"),)
    assert same_again(on_top)


def test_a_number_format_that_a_pipeline_was_moved_to_is_kept():
    assert recipe_of(load_pipeline("testbed:sd1").to(torch.float16)).dtype == "float16"


def test_what_cannot_be_loaded_again_is_refused_with_the_way_out():
    way_out = r"give ns.Ray\(pipeline=...\) a function without arguments that makes it, or save it with"
    by_hand = tiny.shallow()
    with pytest.raises(InvalidInput, match=rf"cannot load this StableDiffusionPipeline again: it was made by hand.*{way_out}"):
        recipe_of(by_hand)
    with pytest.raises(InvalidInput, match=r"its weights are float64, and models are loaded in float16, bfloat16, float32; give"):
        recipe_of(testbed.load("sd1").to(torch.float64))


def test_rows_that_replicas_compute_count_in_every_open_block():
    denoiser = testbed.load("sd1").unet
    with metered(denoiser) as outer:
        with metered(denoiser) as inner:
            count_elsewhere(denoiser, 3)
        count_elsewhere(denoiser, 4)
    count_elsewhere(denoiser, 5)
    assert (outer.cost.nfe, inner.cost.nfe) == (7, 3)
