"""Images say what they were made of: in memory, in their files, and by their files' names."""

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import neuroscope as ns
from neuroscope.generation.labels import FIELDS, file_name, label, read_label
from tests.families.tiny import mask


@pytest.fixture(scope="module")
def plain(graph) -> Image.Image:
    """An image of the untouched model, with the pipeline's own settings."""
    return ns.generate(graph, None, ["a red star"], [0], num_inference_steps=1)[0]


def test_an_image_carries_all_that_it_was_made_of(graph, tmp_path):
    change = mask(graph)
    images = ns.generate(graph, change, ["a red star", "a blue star"], [3, 4], num_inference_steps=1, guidance_scale=2.0)
    images[1].save(tmp_path / "x.png")
    found = read_label(tmp_path / "x.png")
    assert (found["prompt"], found["seed"], found["model"]) == ("a blue star", "4", graph.model)
    scheduler = type(graph.pipe.scheduler).__name__
    assert found["settings"] == {"num_inference_steps": 1, "guidance_scale": 2.0, "scheduler": scheduler}
    assert found["interventions"] == [repr(change)]
    assert images[0].info["prompt"] == "a red star"


def test_the_pipelines_own_settings_are_named(plain):
    settings = json.loads(plain.info["settings"])
    assert settings["guidance_scale"] == 7.5  # what diffusers documents for Stable Diffusion
    assert json.loads(plain.info["interventions"]) == []


def test_a_label_changes_no_pixel_and_other_formats_are_written_as_ever(plain, tmp_path):
    for suffix in ("png", "bmp"):
        plain.save(tmp_path / f"x.{suffix}")
        assert Image.open(tmp_path / f"x.{suffix}").tobytes() == plain.tobytes()
    plain.save(tmp_path / "x.jpg")


@pytest.mark.parametrize("text", ["ein Stern – ☆", "line\nline", "", "x" * 5000, '{"a": "\\"}'])
def test_any_text_comes_back(text, tmp_path):
    image = Image.new("RGB", (2, 2))
    label(image, {"prompt": text, "settings": {text: [text]}, "neuroscope": "1"})
    image.save(tmp_path / "x.png")
    assert read_label(tmp_path / "x.png") == {"prompt": text, "settings": {text: [text]}, "neuroscope": "1"}


def test_what_has_no_label_is_refused(tmp_path):
    with pytest.raises(ns.InvalidFile, match=r"x\.png is no image that can be read: .*No such file"):
        read_label(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ns.InvalidFile, match=r"x\.png is no image that can be read"):
        read_label(tmp_path / "x.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    with pytest.raises(ns.ForeignFile, match=r"x\.png does not say what it was made of; images that `neuroscope generate` makes do"):
        read_label(tmp_path / "x.png")
    chunks = PngInfo()
    chunks.add_text("neuroscope", "1")
    chunks.add_text("settings", "{")
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png", pnginfo=chunks)
    with pytest.raises(ns.InvalidFile, match=r"x\.png has a damaged label"):
        read_label(tmp_path / "x.png")


def test_names_say_prompt_seed_and_what_is_applied():
    assert file_name("a red star", 0) == "a-red-star-seed0.png"
    assert file_name("a red star", 7, ["no-stipple", "edit"]) == "a-red-star-seed7-no-stipple-edit.png"


def test_names_tell_everything_apart():
    texts = ["a red star", "a red star!", "A red star", "a red, star", "a-red-star!", "☆", "★", "x" * 60, "x" * 61, "../a", "a\nb", "a b"]
    names = [file_name(text, seed, applied) for text in texts for seed in (0, 1) for applied in ([], ["m"], ["a/m"], ["b/m"])]
    assert len(set(names)) == len(names)
    assert all(len(name) < 160 and set(name) <= set("abcdefghijklmnopqrstuvwxyzA0123456789-.") for name in names)


def test_show_prints_what_an_image_was_made_of(run, tmp_path):
    image = Image.new("RGB", (2, 2))
    made = {"prompt": "a star", "seed": 3, "model": "m", "settings": {"num_inference_steps": 2}}
    made |= {"interventions": ["Mask()"], "files": ["m.st"]}
    label(image, made | {"neuroscope": "1"})
    image.save("x.png")
    lines = "prompt: a star\nseed: 3\nmodel: m\ninterventions: Mask()\nfiles: m.st\nneuroscope: 1\nnum_inference_steps: 2\n"
    assert run("show", "x.png") == (0, lines, "")
    assert set(json.loads(run("show", "x.png", "--json")[1])) == set(FIELDS)
    code, _, err = run("show", "x.png", "--rows", 3)
    assert (code, "--rows would be ignored: x.png is an image, which has no table" in err) == (2, True)


def test_the_command_line_writes_names_and_labels_that_say_all(run, tmp_path):
    sites = ns.HookGraph(ns.testbed.load("sd1")).sites.where(layer=12, role="value")
    ns.save(ns.NeuronMask(ns.Neurons.at(sites, {sites[0].path: [1]})), "mask.safetensors")
    short = ("--num-inference-steps", 1, "-q", "--seed", 5, "--json")
    code, out, _ = run("generate", "--apply", "mask.safetensors", "--prompt", "a red star", "-o", "out", *short)
    assert code == 0
    assert json.loads(out)["images"] == ["out/a-red-star-seed5-mask.png"]
    found = read_label("out/a-red-star-seed5-mask.png")
    assert (found["seed"], found["model"], found["files"]) == ("5", "testbed:sd1", ["mask.safetensors"])
    assert found["interventions"] == [repr(ns.load("mask.safetensors"))]
