import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler

from neuroscope import Concept, HookGraph, InvalidInput, NonFiniteActivation, Site, SiteNeverRan, UnknownSite, record
from neuroscope.attribution.recording import ARMS
from neuroscope.pipeline.weights import outgoing_norm
from tests.families import tiny
from tests.numerics import NETWORK, close, rounding

STEPS = 3


def positions(pipe, prompts, token: str) -> list[list[int]]:
    """The positions of a kind of token, found from the token numbers."""
    ids = pipe.tokenizer(list(prompts), padding="max_length").input_ids
    end = [row.index(pipe.tokenizer.eos_token_id) for row in ids]
    every = {"last": [[len(row) - 1] for row in ids], "eos": [[each] for each in end], "all": [list(range(len(row))) for row in ids]}
    every["subject"] = [[each - 1] for each in end]  # where the concept is the prompt's last word
    return every[token]


def assert_moments(moments, observations: torch.Tensor) -> None:
    """`observations` has a first axis of prompts."""
    values = observations.double().numpy()
    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moments.variance, values.var(axis=0, ddof=1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("token", ["last", "eos", "subject", "all"])
def test_keys_and_values_are_those_of_a_real_run_without_any_denoising(graph, pipe, token):
    concept = Concept("circle", ["a red circle", "a blue circle", "the emblem circle"], ["a red star", "a blue star", "the emblem star"])
    sites = graph.sites.where(layer=[0, 6, 15], text_only=True)
    with tiny.counted(pipe.unet) as calls:
        recording = record(graph, concept, sites, token, quiet=True)
    assert calls == []
    for arm in ARMS:
        prompts = getattr(concept, arm)
        with graph.capture(sites) as captured:
            tiny.draw(pipe, prompts, num_inference_steps=1)
        for path in sites.paths:
            (rows,) = captured.select(path, rows="conditional")
            read = torch.stack([row[chosen].mean(dim=0) for row, chosen in zip(rows, positions(pipe, prompts, token), strict=True)])
            assert_moments(recording.moments[arm][path], read)


def test_all_keys_and_values_are_the_default(graph, recording):
    assert recording.sites == graph.sites.where(text_only=True)
    assert len(recording.sites) == 32


@pytest.fixture(scope="module")
def pairs():
    return Concept("star", ["a red star", "a blue star", "a cyan star"], ["a red ring", "a blue ring", "a cyan ring"])


@pytest.fixture(scope="module")
def image_side(graph):
    return graph.sites.where(layer=[0, 6, 15], text_only=False)


@pytest.fixture(scope="module")
def observations(graph, pipe, pairs, image_side):
    """The prompt's row, averaged over the image, of one run a prompt: for each arm and path [prompt, step, neuron]."""
    found = {arm: {path: [] for path in image_side.paths} for arm in ARMS}
    for arm in ARMS:
        for number, prompt in enumerate(getattr(pairs, arm)):
            with graph.capture(image_side) as captured:
                tiny.draw(pipe, prompt, seed=5 + number, num_inference_steps=STEPS)
            for path in image_side.paths:
                found[arm][path].append(captured[path][:, 1].mean(dim=1))
    return {arm: {path: torch.stack(each) for path, each in paths.items()} for arm, paths in found.items()}


class TestDenoised:
    @pytest.mark.parametrize("batch_size", [1, 2, 16])
    def test_the_prompts_rows_are_averaged_over_image_and_steps(self, graph, pairs, image_side, observations, batch_size):
        recording = record(graph, pairs, image_side, seed=5, batch_size=batch_size, quiet=True, num_inference_steps=STEPS)
        for arm in ARMS:
            for path in image_side.paths:
                assert_moments(recording.moments[arm][path], observations[arm][path].mean(dim=1))

    def test_steps_are_kept_apart_on_request(self, graph, pairs, image_side, observations):
        recording = record(graph, pairs, image_side, by_step=True, keep_samples=True, seed=5, quiet=True, num_inference_steps=STEPS)
        for arm in ARMS:
            for path in image_side.paths:
                assert_moments(recording.moments[arm][path], observations[arm][path])
                close(recording.samples[arm][path], observations[arm][path].mean(dim=1), terms=1)
                torch.testing.assert_close(recording.mean(arm)[path], recording.moments[arm][path].mean.mean(dim=0))

    def test_without_guidance_all_rows_are_the_prompts(self, graph, pipe, pairs, image_side):
        recording = record(graph, pairs, image_side, quiet=True, num_inference_steps=1, guidance_scale=1.0)
        with graph.capture(image_side) as captured:
            tiny.draw(pipe, pairs.present, num_inference_steps=1, guidance_scale=1.0)
        for path in image_side.paths:
            assert_moments(recording.moments["present"][path], captured[path][0].mean(dim=1))

    def test_a_step_that_takes_two_calls_is_one_step(self, pipe, pairs):
        graph = HookGraph(tiny.with_parts(pipe, scheduler=HeunDiscreteScheduler.from_config(pipe.scheduler.config)))
        sites = graph.sites.where(layer=6, role="query")
        recording = record(graph, pairs, sites, by_step=True, quiet=True, num_inference_steps=STEPS)
        with graph.capture(sites) as captured:
            tiny.draw(graph.pipe, pairs.present, num_inference_steps=STEPS)
        rows = captured.select(sites[0].path, rows="conditional").mean(dim=2)  # [call, prompt, neuron]: steps 0, 0, 1, 1, 2
        assert len(rows) == 2 * STEPS - 1
        by_step = torch.stack([rows[:2].mean(dim=0), rows[2:4].mean(dim=0), rows[4:5].mean(dim=0)], dim=1)
        assert_moments(recording.moments["present"][sites[0].path], by_step)

    def test_text_and_image_sides_are_recorded_together(self, graph, pairs):
        both = record(graph, pairs, graph.sites.where(layer=6), quiet=True, num_inference_steps=1)
        assert both.sites == graph.sites.where(layer=6)
        assert all(both.moments[arm].keys() == set(both.sites.paths) for arm in ARMS)

    def test_recording_changes_no_bit_of_the_pictures(self, graph, pipe, pairs, image_side):
        seen = []

        def keep(_pipe, _step, _timestep, tensors):
            seen.append(tensors["latents"])
            return tensors

        record(graph, pairs, image_side, quiet=True, num_inference_steps=STEPS, callback_on_step_end=keep)
        assert torch.equal(seen[STEPS - 1], tiny.draw(pipe, pairs.present, num_inference_steps=STEPS))

    def test_a_site_that_never_runs_is_an_error(self, fresh, pairs):
        graph = HookGraph(fresh)
        attention = fresh.unet.mid_block.attentions[0].transformer_blocks[0].attn2
        attention.set_processor(lambda attention, hidden_states, *arguments, **options: hidden_states)
        with pytest.raises(SiteNeverRan, match="mid_block.*to_q"):
            record(graph, pairs, graph.sites.where(layer=6, role="query"), quiet=True, num_inference_steps=1)
        assert tiny.hooks(fresh) == []


def test_the_batch_size_does_not_matter(graph, concept, recording):
    again = record(graph, concept, batch_size=2, keep_samples=True, quiet=True)
    for arm in ARMS:
        for path in recording.sites.paths:
            torch.testing.assert_close(again.samples[arm][path], recording.samples[arm][path])
            torch.testing.assert_close(again.moments[arm][path].deviation, recording.moments[arm][path].deviation)


def test_samples_are_the_observations_that_the_moments_are_of(recording):
    for arm in ARMS:
        for path, values in recording.samples[arm].items():
            assert values.dtype == torch.float32
            assert_moments(recording.moments[arm][path], values)


def test_samples_are_kept_on_request_only(graph, concept):
    assert record(graph, concept, graph.sites.where(layer=0, role="key"), quiet=True).samples == {}


def test_repeated_prompts_count_as_often_as_they_are_given(graph):
    (site,) = graph.sites.where(layer=0, role="key")
    twice = record(graph, Concept("star", ["a star"] * 2 + ["a ring"], ["a"] * 3), [site], quiet=True)
    once = record(graph, Concept("star", ["a star", "a ring"], ["a"] * 2), [site], keep_samples=True, quiet=True)
    star, ring = once.samples["present"][site.path]
    assert twice.count("present") == 3
    torch.testing.assert_close(twice.mean("present")[site.path].float(), (2 * star + ring) / 3)
    assert float(twice.moments["absent"][site.path].variance.max()) < rounding(terms=NETWORK) ** 2  # of values of size 1


def test_outgoing_norms_are_kept_for_every_site(graph, recording):
    for site in recording.sites:
        torch.testing.assert_close(recording.outgoing[site.path], outgoing_norm(graph.family, graph.denoiser, site))


def test_it_says_what_it_is_of(recording, graph):
    assert repr(recording) == "Recording('stipple': 6 present, 6 absent prompts, 32 sites, token 'last')"
    assert recording.provenance.concept == "stipple"
    assert recording.provenance.family == graph.family.name
    assert "token='last'" in recording.provenance.method


def test_an_observer_cannot_change_the_output_by_what_it_returns(graph, pipe, untouched):
    with graph.observe(graph.sites.where(layer=8), lambda activation, _call: torch.zeros_like(activation)):
        assert torch.equal(tiny.draw(pipe), untouched)


@pytest.mark.parametrize("role", ["key", "feedforward"])
def test_weights_that_are_not_finite_are_named(fresh, concept, role):
    graph = HookGraph(fresh)
    (site,) = graph.sites.where(layer=3, role=role)
    module = graph.module(site) if role == "key" else graph.module(site).proj
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteActivation, match=rf"^{site.path}: of \d.* recorded activations, \d.* are NaN or infinite"):
        record(graph, concept, [site], quiet=True, **({} if role == "key" else {"num_inference_steps": 1}))
    assert tiny.hooks(fresh) == []


def test_prompts_beyond_the_length_warn(graph):
    long = "the emblem of astoria and " * 5
    with pytest.warns(UserWarning, match="loses '.*circle'"):
        record(graph, Concept("x", [long + "circle"] * 2, ["a"] * 2), graph.sites.where(layer=0, role="key"), quiet=True)


def test_unusable_requests_are_refused(graph, concept, recording, untyped):
    with pytest.raises(InvalidInput, match=r"there is no site to record; choose some with graph.sites.where"):
        record(graph, concept, [], quiet=True)
    with pytest.raises(InvalidInput, match=r"token 'first' is unknown; choose one of last, subject, eos, all"):
        record(graph, concept, token="first", quiet=True)
    with pytest.raises(InvalidInput, match=r"by_step has no meaning for .*down_blocks.0.*attn2.to_k, which is the same at every step"):
        record(graph, concept, by_step=True, quiet=True)
    with pytest.raises(UnknownSite, match="the model has no site unet.none"):
        record(graph, concept, [Site("unet.none", 0, "mid", "key", 4, text_only=True)], quiet=True)
    for ask in (recording.count, recording.mean):
        with pytest.raises(InvalidInput, match=r"arm 'presnt' is unknown; choose one of present, absent; did you mean 'present'\?"):
            ask("presnt")


class TestOptionsOfThePipeline:
    """What is computed without a run follows no option of a run; an option that would be ignored is an error."""

    @pytest.mark.parametrize(
        ("option", "value", "instead"),
        [
            ("num_inference_steps", 3, "leave it out, or record sites that need denoising as well"),
            ("guidance_scale", 3.0, "leave it out"),
            ("negative_prompt", "a star", "leave it out"),
            ("cross_attention_kwargs", {"scale": 0.5}, r"set the scale of a LoRA with pipe.set_adapters\(name, scale\)"),
        ],
    )
    def test_of_sites_that_depend_on_the_prompt_alone(self, graph, concept, option, value, instead):
        (site,) = graph.sites.where(layer=0, role="key")
        message = f"{option} would not be followed at {site.path}, which depends on the prompt alone and is .* without a run; {instead}"
        with pytest.raises(InvalidInput, match=message):
            record(graph, concept, [site], quiet=True, **{option: value})

    @pytest.mark.parametrize(("option", "value"), [("nonsense", 3), ("image", torch.zeros(1, 3, 32, 32)), ("prompt_2", "a star")])
    def test_that_it_does_not_have(self, graph, concept, option, value):
        with pytest.raises(InvalidInput, match=option):
            record(graph, concept, graph.sites.where(layer=0, role="key"), quiet=True, **{option: value})

    def test_the_scale_of_a_lora_beside_sites_that_need_a_run(self, graph, concept, pipe):
        with tiny.counted(pipe.unet) as calls, pytest.raises(InvalidInput, match="cross_attention_kwargs would not be followed at"):
            record(graph, concept, graph.sites.where(layer=0), quiet=True, cross_attention_kwargs={"scale": 0.5})
        assert calls == []

    def test_one_negative_prompt_is_every_prompts(self, graph, pairs, image_side):
        options = {"quiet": True, "num_inference_steps": 1, "keep_samples": True, "negative_prompt": "a blue star"}
        together, alone = (record(graph, pairs, image_side, batch_size=size, **options) for size in (2, 1))
        for path in image_side.paths:
            torch.testing.assert_close(together.samples["present"][path], alone.samples["present"][path], rtol=1e-4, atol=1e-5)

    def test_clip_skip_is_read(self, graph, concept, monkeypatch):
        """What the encoder makes of it is the pipeline's own business: the graph is asked for it."""
        asked = []
        conditions = type(graph.text).conditions
        monkeypatch.setattr(
            type(graph.text), "conditions", lambda self, prompts, **options: asked.append(options) or conditions(self, prompts)
        )
        record(graph, concept, graph.sites.where(layer=0, role="key"), quiet=True, clip_skip=2)
        assert asked == [{"clip_skip": 2}] * 2
