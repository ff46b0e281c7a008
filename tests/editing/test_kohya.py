"""Files for ComfyUI, A1111, kohya's scripts and diffusers, against what these tools look for."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file

from neuroscope import ContextMap, HookGraph, InvalidInput, NeuronMask, Neurons, export_lora, fold
from tests.editing import checkpoints
from tests.editing.test_fold import a_map, mask
from tests.families import tiny

PUBLISHED = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module", params=PUBLISHED)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return HookGraph(tiny.PIPELINES[family]())


def everywhere(graph):
    """A change of every module that a file may hold: what text-side layers read, queries, heads and feed-forwards of each layer."""
    sites = (
        graph.sites.where(text_only=True) if not graph.sites.where(role="pooled") else graph.sites.where(role=("key", "value", "pooled"))
    )
    widths = graph.spec.input_widths
    factors = [
        {site.path: 0.05 * torch.randn(2, widths[site.path], generator=torch.Generator().manual_seed(seed)) for site in sites}
        for seed in (0, 1)
    ]
    masked = graph.sites.where(role=("query", "heads", "feedforward"))
    return [ContextMap(sites.paths, *factors), NeuronMask(Neurons.at(graph.sites, {site.path: [1, 3] for site in masked}), rows="all")]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export_lora(model, everywhere(model), tmp_path_factory.mktemp("lora") / "file.safetensors", format="kohya")


def bases(file):
    return {key.partition(".")[0] for key in load_file(file)}


def test_the_names_of_the_original_checkpoint_are_those_that_diffusers_reads(model):
    unet = model.denoiser
    converted = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{name}": each for name, each in checkpoints.original_state(unet).items()}, unet.config
    )
    own = unet.state_dict()
    assert converted.keys() == own.keys()
    assert all(torch.equal(converted[name], own[name]) for name in own)


def changed_modules(graph):
    """What `everywhere` changes, by path in the denoiser."""
    read = [site.module.replace("net.0", "net.2") for site in graph.sites.where(role="feedforward")]
    return {*read, *(site.module for site in graph.sites.where(role=("key", "value", "query", "heads", "pooled")))}


def test_every_key_names_a_factor_of_a_changed_module(model, exported):
    expected = {f"lora_unet_{path.replace('.', '_')}".replace("add_embedding_linear_1", "label_emb_0_0") for path in changed_modules(model)}
    assert set(load_file(exported)) == {f"{each}.{name}" for each in expected for name in ("lora_down.weight", "lora_up.weight", "alpha")}


def test_comfyui_loads_every_key(model, exported):
    _, left = checkpoints.comfyui_load(model.denoiser, load_file(exported))
    assert not left


def test_a1111_finds_every_module(model, exported):
    unet = model.denoiser
    known = {
        f"diffusion_model_{checkpoints.original(unet.config, path).replace('.', '_')}"
        for path in {name.rpartition(".")[0] for name in unet.state_dict()}
    }
    assert all(set(checkpoints.a1111_module(each)) & known for each in bases(exported))


def test_kohyas_scripts_have_a_module_for_every_key_but_the_pooled_one(model, exported, family):
    known = checkpoints.kohya_modules(model.denoiser, family == "sdxl")
    assert checkpoints.kohya_keys(model.denoiser, bases(exported), family == "sdxl") - known == (
        {"lora_unet_label_emb_0_0"} if family == "sdxl" else set()
    )


@pytest.fixture(scope="module")
def folded(model):
    with fold(model, *everywhere(model)):
        return checkpoints.original_state(model.denoiser)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_comfyuis_arithmetic_gives_the_folded_weights(model, folded, tmp_path, dtype):
    """Factors that are rounded once err by half an eps each, and the sum of their products by as much of their sizes."""
    name = str(dtype).removeprefix("torch.")
    file = load_file(export_lora(model, everywhere(model), tmp_path / "x.safetensors", format="kohya", dtype=name))
    assert {each.dtype for name, each in file.items() if not name.endswith("alpha")} == {dtype}
    before, (loaded, left) = checkpoints.original_state(model.denoiser), checkpoints.comfyui_load(model.denoiser, file)
    assert not left
    changed = {name for name in folded if not torch.equal(folded[name], before[name])}
    assert len(changed) == len(changed_modules(model))
    for name in folded:
        allowed = 8 * torch.finfo(dtype).eps * (folded[name] - before[name]).norm() if name in changed else 0.0
        assert (loaded[name] - folded[name]).norm() <= allowed


def test_diffusers_loads_the_file_with_the_same_weights(model, folded, exported):
    before, names = checkpoints.original_state(model.denoiser), checkpoints.originals(model.denoiser)
    model.pipe.load_lora_weights(exported, adapter_name="edit")
    try:
        loaded = {path: each for path, each in model.denoiser.named_modules() if hasattr(each, "lora_A")}
        assert loaded.keys() == changed_modules(model)
        for path, each in loaded.items():
            found, change = each.get_delta_weight("edit"), folded[f"{names[path]}.weight"] - before[f"{names[path]}.weight"]
            assert (found - change).norm() <= 8 * torch.finfo(torch.float32).eps * change.norm()
    finally:
        model.pipe.unload_lora_weights()


VERSIONS = {
    "sd1": ("sd_v1", "False", "stable-diffusion-v1/lora", "epsilon"),
    "sd2": ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "v"),
    "sdxl": ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", "epsilon"),
}


def test_the_header_says_what_tools_show(model, exported, family):
    with safe_open(exported, "pt") as file:
        header = file.metadata()
    velocity = model.pipe.scheduler.config.prediction_type == "v_prediction"
    version, second, architecture, prediction = VERSIONS[family]
    assert (header["ss_base_model_version"], header["ss_v2"]) == (version, second)
    assert (header["modelspec.architecture"], header["modelspec.prediction_type"]) == (architecture, "v" if velocity else prediction)
    assert header["ss_network_module"] == "networks.lora"
    assert header["ss_network_dim"] == header["ss_network_alpha"] == str(int(load_file(exported)[f"{min(bases(exported))}.alpha"]))
    assert header["ss_output_name"] == "file"
    assert header["modelspec.title"] == "context-map, neuron-mask"
    side = model.denoiser.config.sample_size * model.pipe.vae_scale_factor
    assert header["modelspec.resolution"] == f"{side}x{side}"


def test_the_title_is_the_concept(graph, concept, recording, tmp_path):
    from neuroscope import LocoEdit, Welch, edit, score

    masked = NeuronMask(score(recording, Welch()).top(5), rows="all")
    made = edit(graph, concept, LocoEdit(), 8)
    with safe_open(export_lora(graph, [masked, made], tmp_path / "no-stipple", format="kohya"), "pt") as file:
        assert file.metadata()["modelspec.title"] == "stipple"
        assert file.metadata()["ss_output_name"] == "no-stipple"


def test_the_ranks_of_several_concepts_add_up(graph, tmp_path):
    """One file of two edits and two masks is what they do one after the other."""
    first, second = a_map(graph), a_map(graph, seed=2)
    one, both = (load_file(export_lora(graph, given, tmp_path / "x.safetensors", format="kohya")) for given in (first, [first, second]))
    key = f"{min(each.partition('.')[0] for each in one)}.alpha"
    assert (int(one[key]), int(both[key])) == (len(first.read), len(first.read) + len(second.read))
    changes = [first, mask(graph, "value"), second, mask(graph, "heads", strength=0.5)]
    loaded, _ = checkpoints.comfyui_load(graph.denoiser, load_file(export_lora(graph, changes, tmp_path / "x.safetensors", format="kohya")))
    with fold(graph, *changes):
        folded = checkpoints.original_state(graph.denoiser)
    for name, weight in folded.items():
        assert (loaded[name] - weight).norm() <= 8 * torch.finfo(torch.float32).eps * weight.norm()


def test_where_the_file_goes(graph, tmp_path):
    assert export_lora(graph, a_map(graph), tmp_path / "a", format="kohya") == tmp_path / "a" / "a.safetensors"
    assert export_lora(graph, a_map(graph), tmp_path / "b.safetensors", format="kohya") == tmp_path / "b.safetensors"
    assert export_lora(graph, a_map(graph), tmp_path / "c" / "d.safetensors") == tmp_path / "c" / "d.safetensors"
    assert all(each.is_file() for each in (tmp_path / "a" / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c" / "d.safetensors"))


def test_biases_are_a_key_of_their_own_and_said(graph, pipe, tmp_path):
    changes = [mask(graph, "heads", fill=1.0), mask(graph, "feedforward", fill=-2.0)]
    with pytest.warns(
        UserWarning, match=r"changes the biases of 2 modules \(.diff_b\), which ComfyUI reads, A1111 ignores and diffusers refuses"
    ):
        path = export_lora(graph, changes, tmp_path / "x.safetensors", format="kohya")
    file = load_file(path)
    assert sum(name.endswith(".diff_b") for name in file) == 2
    loaded, left = checkpoints.comfyui_load(pipe.unet, file)
    assert not left
    with fold(graph, *changes):
        folded = checkpoints.original_state(pipe.unet)
    for name, weight in folded.items():
        assert (loaded[name] - weight).norm() <= 8 * torch.finfo(torch.float32).eps * weight.norm()


def test_a_model_that_no_such_tool_runs_is_refused(tmp_path):
    graph = HookGraph(tiny.PIPELINES["if-1"]())
    made = NeuronMask(Neurons.at(graph.sites, {graph.sites.where(role="value")[0].path: [1]}), rows="all")
    with pytest.raises(InvalidInput, match='no tool that reads kohya\'s files runs a deepfloyd-if-unet; export it with format="diffusers"'):
        export_lora(graph, made, tmp_path / "lora", format="kohya")
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_what_they_cannot_hold_are_refused(graph, tmp_path, untyped):
    with pytest.raises(InvalidInput, match="format 'koya' is unknown; choose one of diffusers, kohya; did you mean 'kohya'"):
        export_lora(graph, a_map(graph), tmp_path, format="koya")
    with pytest.raises(InvalidInput, match="dtype 'float8' is unknown; choose one of float32, float16, bfloat16"):
        export_lora(graph, a_map(graph), tmp_path, dtype="float8")
    huge = ContextMap(a_map(graph).paths, 1e6 * a_map(graph).read, 1e6 * a_map(graph).write)
    with pytest.raises(InvalidInput, match='to_[kv] is too large for float16; export it with dtype="float32"'):
        export_lora(graph, huge, tmp_path / "x", dtype="float16")
    assert list(tmp_path.iterdir()) == []
