"""States of a model in which hooks would be silent or wrong, each made for real: the right answer, or an error that names the cause."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    DDIMScheduler,
    LayerSkipConfig,
    PyramidAttentionBroadcastConfig,
    StableDiffusionPipeline,
    apply_layer_skip,
    apply_pyramid_attention_broadcast,
)
from diffusers.models import attention_processor
from peft import LoraConfig

from neuroscope import ContextSwap, HookGraph, InvalidInput, NeuronMask, Neurons, SiteNeverRan, SiteRanUnevenly, record
from neuroscope.testbed.construction.pipelines import build_unplanted, generation_of
from tests.families import tiny
from tests.families.tiny import mask


class TestWhoIsRunning:
    """One denoiser may serve several pipelines, and some keep their guidance to themselves."""

    @pytest.fixture
    def other(self, fresh) -> StableDiffusionPipeline:
        """A second pipeline around the same denoiser and scheduler."""
        return tiny.with_parts(fresh)

    def test_another_pipelines_rows_are_not_guessed(self, fresh, other):
        graph = HookGraph(fresh)
        tiny.draw(fresh, guidance_scale=1.0)  # what this pipeline was doing says nothing of the other
        known = "not by this graph's pipeline, .* make a graph of the pipeline that you run"
        with pytest.raises(InvalidInput, match=known), graph.apply(mask(graph)):
            tiny.draw(other, guidance_scale=7.5)

    def test_another_pipelines_rows_can_all_be_changed(self, fresh, other):
        graph, others = HookGraph(fresh), HookGraph(other)
        with others.apply(mask(others, "all")):
            expected = tiny.draw(other)
        with graph.apply(mask(graph, "all")):
            assert torch.equal(tiny.draw(other), expected)

    def test_each_run_in_a_block_is_known_for_itself(self, fresh, other):
        graph = HookGraph(fresh)
        with graph.apply(mask(graph)):
            expected = tiny.draw(fresh)
        with graph.apply(mask(graph)):
            assert torch.equal(tiny.draw(fresh), expected)
            with pytest.raises(InvalidInput, match="not by this graph's pipeline"):
                tiny.draw(other)
            assert torch.equal(tiny.draw(fresh), expected)

    def test_blocks_may_end_in_any_order(self, fresh):
        graph = HookGraph(fresh)
        first, second = graph.apply(mask(graph)), graph.apply(mask(graph, layer=3))
        with first:
            expected = tiny.draw(fresh)
        first = graph.apply(mask(graph))
        second.__enter__()
        first.__enter__()
        tiny.draw(fresh)
        second.__exit__(None, None, None)
        assert torch.equal(tiny.draw(fresh), expected)
        first.__exit__(None, None, None)
        assert not {"encode_prompt", "maybe_free_model_hooks"} & vars(fresh).keys()

    def test_encoding_a_prompt_begins_no_run(self, fresh):
        graph = HookGraph(fresh)
        context = graph.text.encode([tiny.PROMPT, tiny.OTHER])
        with graph.apply(mask(graph)):
            graph.text.encode([tiny.PROMPT])
            with pytest.raises(InvalidInput, match="not by this graph's pipeline"), torch.no_grad():
                fresh.unet(torch.zeros(2, 4, 16, 16, dtype=fresh.dtype), 7, encoder_hidden_states=context)
            tiny.draw(fresh)

    @pytest.mark.parametrize("family", ["if-1", "if-2"])
    @pytest.mark.parametrize("scale", [1.0, 4.0])
    def test_a_pipeline_that_keeps_its_guidance_to_itself_is_heard(self, family, scale):
        pipe = tiny.exact(build_unplanted(family, 0))
        graph = HookGraph(pipe)
        context = graph.text.conditions([tiny.PROMPT])
        options = generation_of(family) | {"guidance_scale": scale}
        with graph.capture(graph.sites.where(layer=0, role=("key", "value"))) as captured:
            pipe(tiny.PROMPT, generator=torch.Generator().manual_seed(0), output_type="pt", **options)
        for site in captured.sites:
            assert captured[site.path].shape[1] == (2 if scale > 1 else 1)
            expected = graph.module(site)(graph.text.read(site, context))
            torch.testing.assert_close(captured.select(site.path, rows="conditional")[0], expected)


class TestCounts:
    """Each hooked site must run once a call of the denoiser."""

    def test_a_cache_that_skips_a_layer_is_an_error(self, fresh):
        graph = HookGraph(fresh)
        config = PyramidAttentionBroadcastConfig(
            cross_attention_block_skip_range=2,
            cross_attention_timestep_skip_range=(-1, 1001),
            cross_attention_block_identifiers=("attentions",),
            current_timestep_callback=lambda: 500,
        )
        apply_pyramid_attention_broadcast(fresh.unet, config)
        with pytest.raises(SiteRanUnevenly, match="denoiser ran 4 times, .*a cache skips it at some steps"), graph.apply(mask(graph)):
            tiny.draw(fresh, num_inference_steps=4)

    def test_layers_that_are_skipped_are_an_error(self, fresh):
        graph = HookGraph(fresh)
        (site,) = graph.sites.where(layer=8, role="value")
        blocks = site.module.partition(".transformer_blocks")[0] + ".transformer_blocks"
        apply_layer_skip(fresh.unet, LayerSkipConfig(indices=[0], fqn=blocks))
        known = "never did; the likely cause: a wrapper that caches or skips layers"
        with pytest.raises(SiteNeverRan, match=known), graph.apply(mask(graph)):
            tiny.draw(fresh)

    def test_feed_forwards_in_chunks_are_an_error(self, fresh):
        graph = HookGraph(fresh)
        for module in fresh.unet.modules():
            if hasattr(module, "set_chunk_feed_forward"):
                module.set_chunk_feed_forward(1, dim=0)
        (site,) = graph.sites.where(layer=8, role="feedforward")
        change = NeuronMask(Neurons.at(graph.sites, {site.path: range(8)}), rows="all")
        with pytest.raises(SiteRanUnevenly, match="ran 4 times, .* it runs in chunks or slices"), graph.apply(change):
            tiny.draw(fresh, num_inference_steps=2)

    def test_an_error_inside_the_block_is_not_hidden(self, fresh):
        graph = HookGraph(fresh)
        with pytest.raises(KeyError, match="mine"), graph.apply(mask(graph)):
            raise KeyError("mine")

    def test_a_processor_that_goes_past_the_projections_is_an_error(self, fresh):
        class Past:
            def __call__(self, _attention, hidden_states, *_args, **_options):
                return hidden_states

        graph = HookGraph(fresh)
        fresh.unet.set_attn_processor(Past())
        with pytest.raises(SiteNeverRan, match="never did; the likely cause: .*a replaced attention processor"), graph.apply(mask(graph)):
            tiny.draw(fresh)


def attention(query, key, value, attn_bias=None, op=None, scale=None):
    """What xformers' kernel computes, on [batch and head, token, channel]."""
    attention.calls += 1
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_bias, scale=scale)


def slice_attention(pipe):
    denoiser = HookGraph(pipe).denoiser
    if not hasattr(denoiser, "set_attention_slice"):
        pytest.skip("this denoiser's attention is never sliced")
    denoiser.set_attention_slice("max")
    assert any("Sliced" in type(each).__name__ for each in denoiser.attn_processors.values())


def by_xformers(pipe):
    """Its processors run for real; their kernel, which needs a GPU, is torch's own here."""
    added = "AddedKV" if hasattr(pipe.unet, "encoder_hid_proj") and pipe.unet.encoder_hid_proj else ""
    pipe.unet.set_attn_processor(getattr(attention_processor, f"XFormersAttn{added}Processor")())


def reset_processors(pipe):
    pipe.unet.set_default_attn_processor()


def offload_by_module(pipe):
    """What `enable_sequential_cpu_offload` does, which refuses a CPU."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"))


def offload_by_groups(pipe):
    pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


STATES = {
    "attention slicing": slice_attention,
    "xformers": by_xformers,
    "default processors": reset_processors,
    "sequential offload": offload_by_module,
    "group offload": offload_by_groups,
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
}


#: HunyuanDiT's pooling of T5 reads the weights of modules that it does not call, which `accelerate` then leaves away.
IMPOSSIBLE = ("hunyuandit", "sequential offload")
#: Every state on one family of each kind of attention; on the others those that are of the most modules.
CASES = [
    (family, state)
    for family in tiny.PIPELINES
    for state in STATES
    if (family in ("sd1", "if-1") or state in ("attention slicing", "sequential offload")) and (family, state) != IMPOSSIBLE
]


class TestStatesThatChangeNothing:
    """Ways to spare memory: masks, swaps and recordings of a graph that was made before stay the same."""

    @pytest.fixture(scope="class")
    def plain(self, request, concept):
        """A family, and on it as it is: a masked and a swapped run, and the means of a recording."""
        pipe = tiny.PIPELINES[request.param]()
        return request.param, self.done(HookGraph(pipe), concept)

    def done(self, graph: HookGraph, concept) -> list[torch.Tensor]:
        with graph.apply(mask(graph)):
            masked = tiny.draw(graph.pipe, num_inference_steps=1)
        swap = ContextSwap.of(graph, graph.sites.where(role=("key", "value", "pooled")), tiny.OTHER)
        with graph.apply(swap):
            swapped = tiny.draw(graph.pipe, num_inference_steps=1)
        recording = record(graph, concept, graph.sites.where(layer=8, role=("key", "value")), quiet=True)
        return [masked, swapped, *recording.mean("present").values(), *recording.outgoing.values()]

    @pytest.mark.parametrize(("plain", "state"), CASES, indirect=["plain"])
    def test_the_answers_stay(self, plain, concept, state, monkeypatch):
        family, expected = plain
        monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=SimpleNamespace(memory_efficient_attention=attention)))
        attention.calls = 0
        pipe = tiny.PIPELINES[family]()
        graph = HookGraph(pipe)
        STATES[state](pipe)
        found = self.done(graph, concept)
        for mine, plainly in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, plainly, atol=1e-4, rtol=1e-4)
        assert bool(attention.calls) == (state == "xformers")

    def test_weights_that_rest_in_eight_bits_are_computed_with_as_they_are_cast(self, fresh, concept):
        """Layerwise casting: activations are of the cast weights, a full swap is the other run, and recordings are as ever."""
        fresh.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float64)
        graph = HookGraph(fresh)
        (site,) = graph.sites.where(layer=8, role="value")
        weight = graph.module(site).weight
        assert weight.dtype == torch.float8_e4m3fn
        expected = graph.text.encode([tiny.PROMPT]) @ weight.double().T
        with graph.capture([site]) as captured:
            tiny.draw(fresh, num_inference_steps=1)
        torch.testing.assert_close(captured.select(site.path, rows="conditional")[0], expected, atol=1e-5, rtol=1e-5)
        with graph.apply(ContextSwap.of(graph, graph.sites.where(role=("key", "value")), tiny.OTHER)):
            swapped = tiny.draw(fresh)
        assert torch.equal(swapped, tiny.draw(fresh, tiny.OTHER))
        recording = record(graph, concept, [site], "last", quiet=True)
        means = (graph.text.encode(list(concept.present))[:, -1] @ weight.double().T).double().mean(dim=0)
        torch.testing.assert_close(recording.mean("present")[site.path], means, atol=1e-5, rtol=1e-5)


class TestTextEncoder:
    def test_a_lora_on_it_is_part_of_the_context(self, fresh):
        """Sites read what the pipeline's own encoder says, adapters included."""
        plain = HookGraph(fresh).text.encode([tiny.OTHER])
        torch.manual_seed(0)
        fresh.text_encoder.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
        graph = HookGraph(fresh)
        assert not torch.allclose(graph.text.encode([tiny.OTHER]), plain, atol=1e-2)
        with graph.apply(ContextSwap.of(graph, graph.sites.where(role=("key", "value")), tiny.OTHER)):
            swapped = tiny.draw(fresh)
        assert torch.equal(swapped, tiny.draw(fresh, tiny.OTHER))


class Forward:
    """A processor that calls a projection's `forward`, which passes by its hooks."""

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, **_options):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attention.to_q(hidden_states), attention.to_k(context), attention.to_v.forward(context))
        heads = (each.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for each in projected)
        return attention.to_out[0](torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class TestPastHooks:
    def test_a_projection_called_past_its_hooks_is_an_error(self, fresh, untouched):
        graph = HookGraph(fresh)
        fresh.unet.set_attn_processor(Forward())
        torch.testing.assert_close(tiny.draw(fresh), untouched, atol=1e-4, rtol=1e-4)
        known = "to_v never did; the likely cause: .*a replaced attention processor"
        with pytest.raises(SiteNeverRan, match=known), graph.apply(mask(graph)):
            tiny.draw(fresh)

    def test_a_copy_made_inside_a_block_carries_no_effect_away(self, fresh, untouched):
        """Copies of a module take its hooks along, for ever; those of a block do nothing there."""
        graph = HookGraph(fresh)
        with graph.apply(mask(graph)), graph.watch(lambda *_: None):
            expected = tiny.draw(fresh)
            copied = tiny.with_parts(fresh, unet=copy.deepcopy(fresh.unet))
            assert torch.equal(tiny.draw(copied), untouched)
            assert torch.equal(tiny.draw(fresh), expected)
        assert torch.equal(tiny.draw(copied), untouched)


def test_a_schedule_without_change_leaves_the_rest_alone(fresh):
    """A scheduler may be replaced between a graph's making and its use."""
    graph = HookGraph(fresh)
    fresh.scheduler = DDIMScheduler(**tiny.SCHEDULE)
    change = NeuronMask(mask(graph).neurons, fill=2.0, steps=(0.0, 0.5))
    with graph.apply(change), graph.capture(graph.sites.where(layer=8, role="value")) as captured:
        tiny.draw(fresh, num_inference_steps=4)
    assert len(captured[captured.sites[0].path]) == 4
