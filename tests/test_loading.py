"""Models by name: collections by their entry points, single files by what they hold; anything else goes to diffusers as it is."""

import importlib.metadata
import re
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from accelerate import cpu_offload as accelerate_offload
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

import neuroscope as ns
from neuroscope import HookGraph, InvalidInput, testbed
from neuroscope.pipeline import placement
from neuroscope.pipeline.families import _registry
from neuroscope.pipeline.families.unets.unet import UNET
from neuroscope.pipeline.loading import load_pipeline, resolve
from tests.families import tiny
from tests.originals import save_original

SD1 = str(testbed.path("sd1"))


def test_a_collections_model_is_its_folder_and_any_other_name_stays():
    assert resolve("testbed:clip") == testbed.path("clip")
    assert resolve("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
    assert resolve("somewhere:else") == "somewhere:else"


def test_a_folder_with_a_colon_in_its_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "testbed:clip").mkdir()
    assert resolve("testbed:clip") == "testbed:clip"


@pytest.mark.parametrize("ask", [resolve, load_pipeline])
def test_a_mistyped_collection_is_refused_with_the_near_name(ask):
    with pytest.raises(InvalidInput, match="'testbd' is no collection of models; did you mean 'testbed'?"):
        ask("testbd:sd1")


def test_families_of_other_packages_are_found(monkeypatch):
    other = replace(UNET, name="another-unet")
    entry = SimpleNamespace(name="another", load=lambda: other)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == _registry.GROUP else [])
    assert [each.name for each in _registry._find()] == sorted(["another-unet", *(each.name for each in _registry.FAMILIES)])


class TestPlace:
    @pytest.fixture
    def gpus(self, monkeypatch):
        """As many GPUs of CUDA's as a test says."""

        def have(count):
            monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

        have(0)
        return have

    def test_auto_takes_a_gpu_where_there_is_one_and_half_precision_there(self, gpus, monkeypatch):
        assert placement.placement() == ("cpu", torch.float32, "none")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert placement.placement() == ("mps", torch.float16, "none")
        gpus(1)
        assert placement.placement() == ("cuda", torch.float16, "none")
        assert placement.placement("cpu") == ("cpu", torch.float32, "none")
        assert placement.placement("cuda:0", "bfloat16", "model") == ("cuda:0", torch.bfloat16, "model")

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ({"device": "cuda"}, r"the device 'cuda' is not here: torch .* finds no such GPU; give auto, or one of cpu$"),
            ({"device": "cuda:1"}, "the device 'cuda:1' is not here"),
            ({"device": "gpu"}, "device 'gpu' is unknown; choose one of auto, cuda, mps, cpu"),
            ({"device": "cuda:x"}, "device 'cuda:x' is unknown"),
            ({"dtype": "fp16"}, "dtype 'fp16' is unknown; choose one of auto, float16, bfloat16, float32; did you mean"),
            ({"offload": "cpu"}, "offload 'cpu' is unknown; choose one of none, model, sequential"),
            ({"offload": "model"}, "offload 'model' moves parts of the model to a GPU while they run, and the device is the CPU"),
        ],
    )
    def test_what_is_not_here_is_refused(self, gpus, asked, words):
        with pytest.raises(InvalidInput, match=words):
            load_pipeline("testbed:sd1", **asked)

    def test_a_gpu_that_is_not_there_is_counted(self, gpus):
        gpus(2)
        with pytest.raises(InvalidInput, match="the device 'cuda:2' is not here: there are 2, counted from cuda:0"):
            placement.placement("cuda:2")

    @pytest.mark.parametrize("model", [SD1, "testbed:sd1", "testbed:sd1/layer"])
    def test_the_number_format_is_that_of_all_parts(self, model):
        graph = HookGraph(load_pipeline(model, device="cpu", dtype="bfloat16"))
        parts = [part for part in graph.pipe.components.values() if isinstance(part, torch.nn.Module)]
        assert {each.dtype for part in parts for each in part.parameters()} == {torch.bfloat16}
        assert repr(graph).endswith(", cpu, bfloat16)")
        found = placement.footprint(graph.pipe)
        assert found.bytes == 2 * found.parameters == 2 * sum(each.numel() for part in parts for each in part.parameters())
        size = f"{found.parameters / 1e6:,.1f} million parameters, {found.bytes / 1e9:,.2f} GB"
        assert str(found) == f"{graph.model}: family {graph.family.name}, cpu, bfloat16, {size}, offload none"

    @pytest.mark.parametrize("offload", ["model", "sequential"])
    def test_offloaded_parts_are_counted_where_they_rest(self, fresh, offload, monkeypatch):
        plain = placement.footprint(fresh)
        monkeypatch.setattr(fresh, "enable_sequential_cpu_offload", lambda device: sequential(fresh, device))
        placement.place(fresh, placement.Placement("cpu", torch.float32, offload))
        found = placement.footprint(fresh)
        assert found == replace(plain, offload=offload, device=found.device)
        assert found.device.startswith("cpu")

    def test_a_pipeline_that_cannot_be_offloaded_says_so(self, fresh, monkeypatch):
        monkeypatch.setattr(type(fresh), "model_cpu_offload_seq", None)
        with pytest.raises(InvalidInput, match="StableDiffusionPipeline cannot be offloaded: Model CPU offload .*; leave offload out"):
            placement.place(fresh, placement.Placement("cpu", torch.float32, "model"))


def sequential(pipe, device):
    """diffusers' own refuses a CPU."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate_offload(part, torch.device(device))


class TestCheckpoint:
    @pytest.fixture(scope="class")
    def file(self, tmp_path_factory):
        return save_original(testbed.load("sd1"), tmp_path_factory.mktemp("checkpoint") / "sd1.safetensors")

    def test_it_is_the_pipeline_that_it_was_written_from(self, file):
        pipe, own = load_pipeline(str(file), config=SD1), testbed.load("sd1")
        assert type(pipe) is diffusers.StableDiffusionPipeline
        assert HookGraph(pipe).model == str(file)
        for name in ("unet", "vae", "text_encoder"):
            found, expected = (dict(getattr(each, name).state_dict()) for each in (pipe, own))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected), name

    def test_it_is_loaded_in_the_number_format(self, file):
        assert load_pipeline(str(file), config=SD1, dtype="bfloat16", device="cpu").unet.dtype == torch.bfloat16

    def test_without_a_network_it_needs_its_configuration(self, file, monkeypatch):
        monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", unreachable)
        words = r"holds weights alone, and the configuration '[\w-]+/[\w.-]+' .* cannot be read \(OSError\); give the folder"
        with pytest.raises(InvalidInput, match=words):
            load_pipeline(str(file))

    def test_another_models_configuration_is_refused(self, file, tmp_path):
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
        with pytest.raises(InvalidInput, match="cannot be loaded as the StableDiffusionXLPipeline of .*; give the configuration that"):
            load_pipeline(str(file), config=str(tmp_path))

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            (
                {"unet.down.lora_A.weight": torch.zeros(1)},
                "holds a LoRA, and no model; give the model that it belongs to, and the",
            ),
            ({"weight": torch.zeros(1)}, "is no checkpoint of a whole model: its first tensor is 'weight'"),
            ({}, "is no checkpoint of a whole model: it is empty"),
        ],
    )
    def test_what_is_no_checkpoint_is_refused_by_what_it_is(self, tmp_path, tensors, words):
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(InvalidInput, match=words):
            load_pipeline(str(tmp_path / "a.safetensors"))

    def test_our_own_files_and_pickles_and_damaged_files_are_refused(self, recording, tmp_path):
        ns.save(recording, tmp_path / "r.safetensors")
        (tmp_path / "m.ckpt").write_bytes(b"x")
        (tmp_path / "d.safetensors").write_bytes(b"x")
        for name, words in {
            "r.safetensors": "holds a recording of neuroscope, and no model",
            "m.ckpt": "may hold a pickle, which can run any code, and is not opened; give the same model as .safetensors",
            "d.safetensors": "is no safetensors file that can be read",
            "no.safetensors": "there is no file",
        }.items():
            with pytest.raises(InvalidInput, match=words):
                load_pipeline(str(tmp_path / name))


def unreachable(*_args, **_options):
    raise OSError("no network")


class TestOptions:
    @pytest.mark.parametrize(
        ("model", "option", "why"),
        [
            ("testbed:sd1", "variant", "testbed:sd1 is the package's own"),
            (SD1, "revision", "is a folder"),
            (SD1, "config", "is a folder"),
            ("me/model", "config", "has a configuration of its own"),
            ("a.safetensors", "variant", "is a single file"),
        ],
    )
    def test_what_would_be_ignored_is_refused(self, model, option, why):
        with pytest.raises(InvalidInput, match=rf"{option}='x' would be ignored: .*{why}; leave it out"):
            load_pipeline(model, **{option: "x"})

    def test_a_hub_id_goes_to_diffusers_with_variant_and_revision(self, fresh, monkeypatch):
        asked = {}

        def from_pretrained(model, **options):
            asked.update(options, model=model)
            return fresh

        monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", from_pretrained)
        assert load_pipeline("me/model", device="cpu", variant="fp16", revision="main") is fresh
        assert asked == {"model": "me/model", "variant": "fp16", "revision": "main", "dtype": torch.float32}

    def test_a_folder_without_the_variant_says_so(self):
        with pytest.raises(InvalidInput, match=re.escape(f"the model {SD1!r} cannot be loaded: ")):
            load_pipeline(SD1, variant="fp16")

    def test_a_lora_is_put_on_top(self, tmp_path):
        fresh = testbed.load("sd1")
        torch.manual_seed(0)
        fresh.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_v"]))
        diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=lora_of(fresh.unet))
        pipe = load_pipeline("testbed:sd1", loras=[str(tmp_path)])
        assert torch.equal(tiny.draw(pipe), tiny.draw(fresh))
        assert not torch.equal(tiny.draw(pipe), tiny.draw(testbed.load("sd1")))

    def test_a_file_that_is_no_lora_is_refused(self, tmp_path):
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(InvalidInput, match="the LoRA .*a.safetensors' cannot be put on StableDiffusionPipeline: "):
            load_pipeline("testbed:sd1", loras=[str(tmp_path / "a.safetensors")])


def lora_of(unet):
    return get_peft_model_state_dict(unet)
