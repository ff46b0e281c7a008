"""Stable Audio: heads that share keys and values, tokens of durations behind the prompt's, and zeros for the negative prompt."""

from functools import cache

import pytest
import torch

import neuroscope as ns
from neuroscope.generation.batches import Row, Sweep
from neuroscope.testbed import build
from tests.families import tiny
from tests.families.finding import LAYER_METHODS, finds_the_planted_layer

PROMPT, OTHER = "a red circle in the style of plain", "a blue star and a red circle in the style of stipple"


@cache
def model() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["stable-audio"]())


@cache
def graph_of(plant: str) -> ns.HookGraph:
    return ns.HookGraph(build("stable-audio", plant, 0))


def draw(prompt: str = PROMPT, **options: object) -> torch.Tensor:
    return tiny.draw(model().pipe, prompt, **({"guidance_scale": 1.0} | options))


def swap(**options: object) -> ns.ContextSwap:
    return ns.ContextSwap.of(model(), model().sites.where(role=("key", "value")), OTHER, **options)


def test_keys_and_values_are_half_as_wide_as_queries():
    widths = {role: {site.width for site in model().sites.where(role=role)} for role in ("query", "key", "value", "heads")}
    assert widths == {"query": {96}, "key": {48}, "value": {48}, "heads": {96}}
    heads = model().heads(model().sites.where(layer=0, role=("key", "value", "query")))
    assert sorted(heads.values()) == [3, 3, 6]


@pytest.mark.parametrize("negative", [None, "a cross"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_all_text_sites_swapped_is_the_target_run(scale, negative):
    options = {"guidance_scale": scale, "negative_prompt": negative}
    with model().apply(swap()):
        found = draw(**options)
    assert torch.equal(found, draw(OTHER, **options))


def test_none_swapped_is_the_source_run():
    with model().apply(ns.ContextSwap.of(model(), model().sites.where(role=("key", "value")), PROMPT)):
        assert torch.equal(draw(), draw())


def test_durations_are_no_words_of_the_prompt():
    """They stand behind it, and a swap leaves them as they are: with another length, only the prompt is the other's."""
    (site,) = model().sites.where(layer=3, role="value")
    seen = []
    for change in ((), (swap(),)):
        with model().apply(*change), model().capture([site]) as captured:
            draw(audio_end_in_s=0.004)
        seen.append(captured[site.path][0, 0])
    assert seen[0].shape == (24 + 2, 48)
    assert torch.equal(seen[0][24:], seen[1][24:])
    assert not torch.equal(seen[0][:24], seen[1][:24])


def test_swaps_of_single_neurons_leave_durations_alone():
    (site,) = model().sites.where(layer=3, role="value")
    neurons = ns.Neurons.at(model().sites, {site.path: [0, 5]})
    change = ns.ContextSwap.of(model(), [site], OTHER, neurons=neurons)
    with model().capture([site]) as before:
        draw()
    with model().apply(change), model().capture([site]) as after:
        draw()
    moved = (before[site.path] - after[site.path])[0, 0].abs()
    assert not moved[24:].any()
    assert set(moved[:24].sum(dim=0).nonzero().flatten().tolist()) == {0, 5}


def test_a_mask_of_tokens_from_behind_is_refused():
    (site,) = model().sites.where(layer=3, role="value")
    with pytest.raises(ns.InvalidInput, match=r"the mask's tokens \(-1,\) are counted from behind, where no token of the prompt is"):
        ns.NeuronMask(ns.Neurons.at(model().sites, {site.path: [0]}), tokens=(-1,)).check(model().spec)


@pytest.mark.parametrize("negative", [None, "a cross"])
def test_sweeps_make_the_pipelines_own_runs(negative):
    """Guided without a negative prompt, the unconditional rows read zeros, durations included."""
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": negative}
    ((_, made),) = Sweep(model(), [PROMPT], options, space="latent").run([Row(PROMPT, 0)])
    torch.testing.assert_close(made[0][None], draw(**options), rtol=1e-9, atol=1e-9)
    assert (model().text.negative(negative).context == 0).all() == (negative is None)


def test_conditions_are_zero_where_the_mask_hides_a_token():
    context = model().text.encode([PROMPT])
    count = len(model().text.tokenizer(PROMPT).input_ids)
    assert context[0, :count].all(dim=-1).all()
    assert not context[0, count:].any()


def test_a_mask_is_zeroed_rows_of_the_weight():
    (site,) = model().sites.where(layer=3, role="value")
    with model().apply(ns.NeuronMask(ns.Neurons.at(model().sites, {site.path: range(4)}), rows="all")):
        masked = draw(guidance_scale=4.0)
    weight = model().module(site).weight
    kept = weight.data.clone()
    weight.data[:4] = 0.0
    try:
        torch.testing.assert_close(masked, draw(guidance_scale=4.0), rtol=1e-12, atol=1e-12)
    finally:
        weight.data.copy_(kept)


@pytest.mark.parametrize("name", LAYER_METHODS)
def test_every_method_finds_the_planted_layer(name):
    assert finds_the_planted_layer(graph_of("layer"), name, LAYER_METHODS[name])


def test_a_sound_is_what_the_pipeline_gives():
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "audio_end_in_s": 0.005}
    (made,) = Sweep(model(), [PROMPT], options).run([Row(PROMPT, 3)])
    expected = model().pipe(PROMPT, generator=[torch.Generator().manual_seed(3)], output_type="np", **options).audios[0]
    (sound,) = made[1]
    assert sound.samples.shape == expected.shape == (2, 80)
    assert abs(sound.samples - expected).max() < 1e-6


def test_a_projection_of_prompts_is_refused():
    pipe = tiny.PIPELINES["stable-audio"]()
    pipe.projection_model.text_projection = torch.nn.Linear(64, 64).double()
    with pytest.raises(ns.UnsupportedModel, match="projects T5's states, which the published ones pass on; it is not supported"):
        ns.HookGraph(pipe).text.conditions([PROMPT])
