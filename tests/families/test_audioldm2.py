"""AudioLDM 2: three transformers at every place, of which one reads GPT-2, one reads T5 under a mask, and one reads no text."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch

import neuroscope as ns
from neuroscope.core.conditions import Conditions
from neuroscope.generation.model_content import pipeline_content
from neuroscope.generation.teacher_forcing import TeacherForcing, record_steps
from neuroscope.testbed import build, planted
from neuroscope.testbed.construction.pipelines import build_unplanted
from tests.families import tiny
from tests.families.finding import LAYER_METHODS, finds_the_planted_layer

PROMPT, OTHER = "a red circle in the style of plain", "a blue star and a red circle in the style of stipple"
METHODS = LAYER_METHODS | {"contribution of tokens": ns.AttentionContribution()}
del METHODS["cross"]  # its noise is in test_operations.py
built = cache(build)


@cache
def model() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["audioldm2"]())


@cache
def graph_of(plant: str) -> ns.HookGraph:
    return ns.HookGraph(built("audioldm2", plant, 0))


def draw(graph: ns.HookGraph, prompt: str | list[str] = PROMPT, **options: object) -> torch.Tensor:
    return tiny.draw(graph.pipe, prompt, **({"guidance_scale": 1.0} | options))


def _swap(graph: ns.HookGraph, block: str, **options: object) -> ns.ContextSwap:
    return ns.ContextSwap.of(graph, graph.sites.where(block=block, role=("key", "value")), OTHER, **options)


def _apart(graph: ns.HookGraph, change: ns.ContextSwap, **options: object) -> float:
    """How far a changed run is from the other prompt's, as a share of the way there."""
    source, target = draw(graph, **options), draw(graph, OTHER, **options)
    with graph.apply(change):
        return float((draw(graph, **options) - target).norm() / (target - source).norm())


def test_layers_that_read_no_text_are_none():
    """A filter by the name attn2 finds 48 keys; of three at a place the first reads the sound itself."""
    named = [path for path, _ in model().denoiser.named_modules() if path.endswith("attn2.to_k")]
    found = model().sites.where(role="key")
    without = [path for path in named if path not in {site.module for site in found}]
    assert (len(named), len(found)) == (48, 32)
    assert {int(path.split("attentions.")[1].split(".")[0]) % 3 for path in without} == {0}
    for path in without:
        attention = model().denoiser.get_submodule(path)
        assert attention.in_features == 32


@pytest.mark.parametrize(("encoder", "width", "tokens"), [("gpt2", 36, 8), ("t5", 64, 24)])
def test_the_two_encoders_are_chosen_apart(encoder, width, tokens):
    sites = model().sites.where(block=f"*.{encoder}")
    assert len(sites.layers) == 16
    conditions = model().text.conditions([PROMPT])
    for site in sites.where(text_only=True):
        assert model().text.read(site, conditions).shape == (1, tokens, width)
        assert (site.path in model().spec.wordless) is (encoder == "gpt2")


def test_components_that_read_no_text_count_as_self_attention():
    kinds = [component.kind for component in model().components]
    assert {kind: kinds.count(kind) for kind in ("cross", "self", "ff")} == {"cross": 32, "self": 64, "ff": 48}


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_all_text_sites_swapped_is_the_target_run(scale):
    rows = "conditional"
    change = _swap(model(), "*", rows=rows)
    apart = _apart(model(), change, guidance_scale=scale)
    # guided, GPT-2's states of the negative prompt depend on the prompt's length, unless it knows no positions
    assert apart < 1e-12


def test_each_encoder_alone_moves_a_part_of_the_way():
    apart = {encoder: _apart(model(), _swap(model(), f"*.{encoder}")) for encoder in ("gpt2", "t5")}
    assert all(0.05 < each for each in apart.values())


def test_none_swapped_is_the_source_run():
    own = ns.ContextSwap.of(model(), model().sites.where(role=("key", "value")), PROMPT)
    source = draw(model())
    with model().apply(own):
        torch.testing.assert_close(draw(model()), source, rtol=1e-12, atol=1e-12)
    with model().apply(), model().capture():
        torch.testing.assert_close(draw(model()), source, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("encoder", ["gpt2", "t5"])
def test_a_mask_is_zeroed_rows_of_the_weight(encoder):
    graph = model()
    (site,) = graph.sites.where(block=f"*.{encoder}", role="value")[3:4]
    mask = ns.NeuronMask(ns.Neurons.at(graph.sites, {site.path: range(4)}), rows="all")
    with graph.apply(mask):
        masked = draw(graph, guidance_scale=4.0)
    weight = graph.module(site).weight
    kept = weight.data.clone()
    weight.data[:4] = 0.0
    try:
        torch.testing.assert_close(masked, draw(graph, guidance_scale=4.0), rtol=1e-12, atol=1e-12)
    finally:
        weight.data.copy_(kept)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_text_only_activations_are_the_runs_own_at_every_step(scale):
    graph = model()
    text = graph.sites.where(text_only=True)
    with graph.capture(text) as captured:
        draw(graph, OTHER, guidance_scale=scale)
    conditions = graph.text.conditions([OTHER])
    for site in text:
        with torch.no_grad():
            expected = graph.module(site)(graph.text.read(site, conditions))
        for step in range(2):
            torch.testing.assert_close(captured.select(site.path, rows="conditional")[step], expected)
        assert captured[site.path].shape[1] == (2 if scale > 1 else 1)


def test_each_prompt_is_encoded_alone():
    """GPT-2 writes behind the padding, so that in the pipeline's own batch a short prompt is heard otherwise than alone."""
    pipe = tiny.PIPELINES["audioldm2"]()
    pipe.language_model.transformer.wpe.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    graph = ns.HookGraph(pipe)
    with torch.no_grad():
        alone, batch = (pipe.encode_prompt(prompts, "cpu", 1, False) for prompts in ([PROMPT], [PROMPT, OTHER]))
    assert (alone[2] - batch[2][:1]).norm() > 1e-3 * alone[2].norm()
    conditions = graph.text.conditions([PROMPT, OTHER])
    torch.testing.assert_close(conditions.generated[:1], alone[2])
    count = alone[0].shape[1]
    torch.testing.assert_close(conditions.context[:1, :count], alone[0])
    assert conditions.mask.sum(dim=1).tolist() == [count, batch[0].shape[1]]
    assert conditions.context.shape == (2, 24, 64)


def test_the_negative_prompt_stands_first_in_the_pipelines_batch():
    pipe = model().pipe
    with torch.no_grad():
        both = pipe.encode_prompt([PROMPT], "cpu", 1, True, None, [OTHER])
    positive, negative = model().family.split((), pipe, both, ("", "", 1, True), {})
    for part, expected in ((positive, both[0][1:]), (negative, both[0][:1])):
        assert torch.equal(part.context, expected)


@pytest.mark.parametrize("negative", [OTHER, None])
def test_negative_prompts_are_encoded_as_prompts_are(negative):
    """The pipeline cuts them off where the prompt ends."""
    found, expected = model().text.negative(negative), model().text.conditions([negative or ""])
    for name in ("context", "generated", "mask"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_predictions_from_recorded_inputs_are_the_runs_own():
    graph = graph_of("layer")
    with record_steps(graph, 1) as found:
        draw(graph)
    step = found[0][0]
    target = graph.text.conditions([OTHER])
    for block in ("*.gpt2", "*.t5"):
        paths = graph.sites.where(block=block, role=("key", "value")).paths
        swap = ns.ContextSwap.reading(target, paths, rows="all")
        predicted = TeacherForcing(graph).predict(step, [[], [swap]])
        torch.testing.assert_close(predicted[0], step.output[0], rtol=1e-4, atol=1e-5)
        with graph.apply(swap), torch.no_grad():
            alone = graph.denoiser(**step.inputs)[0]
        torch.testing.assert_close(predicted[1], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_the_planted_layer(name):
    assert finds_the_planted_layer(graph_of("layer"), name, METHODS[name])


def test_neurons_of_either_encoder_are_ranked():
    graph = graph_of("layer")
    for encoder in ("gpt2", "t5"):
        sites = graph.sites.where(block=f"*.{encoder}", role="value")
        scores = ns.score(ns.record(graph, planted(graph.pipe).concept, sites, "subject", quiet=True), ns.MeanDifference())
        assert set(scores.top(20)) <= set(sites.paths)


def test_saved_swaps_hold_what_gpt2_wrote(tmp_path):
    change = _swap(model(), "*.gpt2")
    ns.save(change, tmp_path / "swap.safetensors")
    assert torch.equal(ns.load(tmp_path / "swap.safetensors").generated, change.generated)


def test_positions_of_gpt2_are_no_tokens():
    (site,) = model().sites.where(block="*.gpt2", role="value")[:1]
    mask = ns.NeuronMask(ns.Neurons.at(model().sites, {site.path: [0]}), tokens=(1,))
    with pytest.raises(ns.InvalidInput, match="has no position for each token; make the mask without tokens"):
        mask.check(model().spec)


def test_a_swap_without_what_gpt2_wrote_is_refused():
    (site,) = model().sites.where(block="*.gpt2", role="value")[:1]
    conditions = model().text.conditions([OTHER])
    with pytest.raises(ns.InvalidInput, match=r"this change holds nothing generated, which unet\..+ reads"):
        ns.ContextSwap.reading(Conditions(conditions.context, mask=conditions.mask), [site.path]).check(model().spec)
    with pytest.raises(ns.InvalidInput, match="this change holds nothing generated, which layers of GPT-2 read"):
        model().text.read(site, Conditions(conditions.context))


def test_a_row_has_the_vocoders_frequencies():
    assert model().family.latent_size(model().pipe, SimpleNamespace(config=SimpleNamespace(sample_size=8)), None, None) == (8, 4)


def test_its_content_is_the_same_in_every_process():
    """transformers keeps a hash of the language model's settings that differs from process to process."""
    pipe = build_unplanted("audioldm2", 0)
    before = pipeline_content(pipe)
    pipe.language_model.generation_config._original_object_hash = 1
    assert pipeline_content(pipe) == before
    pipe.language_model.generation_config.max_new_tokens = 9
    assert pipeline_content(pipe) != before
