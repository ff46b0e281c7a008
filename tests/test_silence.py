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

from neuroscope import (
    ContextSwap,
    HookGraph,
    InvalidInput,
    NeuronMask,
    Neurons,
    SiteNeverRan,
    SiteRanUnevenly,
    UnsupportedModel,
    export_lora,
    fold,
    record,
)
from neuroscope.doctor import diagnose
from neuroscope.families import uncompiled
from neuroscope.testbed.construction.pipelines import build_unplanted, generation_of
from tests.families import tiny


def mask(graph: HookGraph, rows: str = "conditional", layer: int = 8) -> NeuronMask:
    (site,) = graph.sites.where(layer=layer, role="value")
    return NeuronMask(Neurons.at(graph.sites, {site.path: range(8)}), fill=2.0, rows=rows)


def wrong(pipe) -> list[str]:
    return [finding.name for finding in diagnose(pipe) if finding.state == "wrong"]


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
        context = graph.encode([tiny.PROMPT, tiny.OTHER])
        with graph.apply(mask(graph)):
            graph.encode([tiny.PROMPT])
            with pytest.raises(InvalidInput, match="not by this graph's pipeline"), torch.no_grad():
                fresh.unet(torch.zeros(2, 4, 16, 16), 7, encoder_hidden_states=context)
            tiny.draw(fresh)

    @pytest.mark.parametrize("family", ["if-1", "if-2"])
    @pytest.mark.parametrize("scale", [1.0, 4.0])
    def test_a_pipeline_that_keeps_its_guidance_to_itself_is_heard(self, family, scale):
        pipe = build_unplanted(family, 0)
        graph = HookGraph(pipe)
        context = graph.conditions([tiny.PROMPT])
        options = generation_of(family) | {"guidance_scale": scale}
        with graph.capture(graph.sites.where(layer=0, role=("key", "value"))) as captured:
            pipe(tiny.PROMPT, generator=torch.Generator().manual_seed(0), output_type="pt", **options)
        for site in captured.sites:
            assert captured[site.path].shape[1] == (2 if scale > 1 else 1)
            expected = graph.module(site)(graph.read(site, context))
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


@pytest.mark.filterwarnings("ignore")
class TestCompiled:
    """Compiled code keeps the hooks that it was compiled with, so blocks run the modules as they were written."""

    @pytest.fixture
    def small(self, pipe) -> StableDiffusionPipeline:
        """A denoiser of four layers, which compiles quickly."""
        blocks = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
        torch.manual_seed(0)
        unet = tiny.build_unet(**blocks, block_out_channels=[32, 32], layers_per_block=1).eval()
        return tiny.with_parts(pipe, unet=unet)

    @pytest.fixture
    def untouched(self, small) -> torch.Tensor:
        return tiny.draw(small)

    @pytest.fixture
    def expected(self, small) -> torch.Tensor:
        graph = HookGraph(small)
        with graph.apply(mask(graph, layer=0)):
            return tiny.draw(small)

    @pytest.fixture(params=["wrapped", "in place", "block by block"])
    def compiled(self, request, small, untouched, expected):
        if request.param == "wrapped":
            small.unet = torch.compile(small.unet, backend="eager")
        elif request.param == "in place":
            small.unet.compile(backend="eager")
        else:
            for block in small.unet.down_blocks:
                block.compile(backend="eager")
        return small

    def test_hooks_run_before_and_after_the_first_compiled_call(self, compiled, expected, untouched):
        mine = HookGraph(compiled)
        with mine.apply(mask(mine, layer=0)):
            assert torch.equal(tiny.draw(compiled), expected)
        torch.testing.assert_close(tiny.draw(compiled), untouched)  # outside it runs compiled
        with mine.apply(mask(mine, layer=0)):
            assert torch.equal(tiny.draw(compiled), expected)

    def test_blocks_may_end_in_any_order_and_the_last_lets_compiled_code_run(self, small):
        compiled = []
        small.unet.down_blocks[0].compile(backend=lambda module, _inputs: compiled.append(module) or module.forward)
        graph = HookGraph(small)
        first, second = graph.apply(mask(graph, layer=0)), graph.apply(mask(graph, layer=3))
        first.__enter__()
        second.__enter__()
        tiny.draw(small)
        first.__exit__(None, None, None)
        tiny.draw(small)
        second.__exit__(None, None, None)
        assert not compiled
        tiny.draw(small)
        assert compiled

    def test_without_eager_what_was_compiled_before_is_an_error_with_that_cause(self, compiled):
        tiny.draw(compiled)
        mine = HookGraph(compiled, eager=False)
        known = "the denoiser was compiled before it was hooked; make the graph with eager=True"
        with pytest.raises(SiteNeverRan, match=known), mine.apply(mask(mine, layer=0)):
            tiny.draw(compiled)

    def test_folding_into_a_compiled_denoiser_is_folding_into_a_plain_one(self, compiled, untouched):
        """Weights are found by the names of the module that was compiled, and compiled code reads them."""
        plain = HookGraph(tiny.with_parts(compiled, unet=copy.deepcopy(uncompiled(compiled.unet))))
        change = mask(plain, "all", layer=0)
        with fold(plain, change):
            expected = tiny.draw(plain.pipe)
        tiny.draw(compiled)
        with fold(HookGraph(compiled), change):
            torch.testing.assert_close(tiny.draw(compiled), expected)
        assert not torch.allclose(expected, untouched, atol=1e-2)


class TestLora:
    @pytest.fixture
    def adapted(self, fresh):
        rank = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_v", "to_out.0"])
        torch.manual_seed(0)
        fresh.unet.add_adapter(rank)
        return fresh

    def test_activations_are_those_with_the_adapter(self, adapted, graph):
        adapted.unet.load_state_dict(adapted.unet.state_dict())
        mine = HookGraph(adapted)
        (site,) = mine.sites.where(layer=8, role="value")
        context = mine.encode([tiny.PROMPT])
        layer = mine.module(site)
        with torch.no_grad():
            plain = layer.base_layer(context)
            expected = plain + context @ layer.get_delta_weight("default").T
        with mine.capture([site]) as captured:
            tiny.draw(adapted, num_inference_steps=1)
        torch.testing.assert_close(captured.select(site.path, rows="conditional")[0], expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain, expected, atol=1e-3)

    def test_outgoing_norms_are_those_with_the_adapter(self, adapted):
        mine = HookGraph(adapted)
        (site,) = mine.sites.where(layer=8, role="value")
        reader = adapted.unet.get_submodule(mine.reader(site))
        effective = reader.base_layer.weight + reader.get_delta_weight("default")
        torch.testing.assert_close(mine.outgoing_norm(site), effective.double().norm(dim=0))
        adapted.unet.disable_adapters()
        torch.testing.assert_close(mine.outgoing_norm(site), reader.base_layer.weight.double().norm(dim=0))

    @pytest.mark.parametrize("when", ["loaded", "unloaded"])
    def test_it_may_come_and_go_after_the_graph(self, fresh, when):
        """Adapters put another module in a site's place; hooks sit on the one that is there."""
        rank = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_v", "to_out.0"])
        torch.manual_seed(0)
        if when == "loaded":
            graph = HookGraph(fresh)
            fresh.unet.add_adapter(rank)
        else:
            fresh.unet.add_adapter(rank)
            graph = HookGraph(fresh)
            fresh.unload_lora_weights()
        runs = []
        for each in (graph, HookGraph(fresh)):
            sites = each.sites.where(layer=8, role=("value", "output"))
            with each.apply(mask(each)), each.capture(sites) as captured:
                runs.append([tiny.draw(fresh)])
            runs[-1] += [captured[site.path] for site in sites]
            with each.rewire({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2": lambda output, _guided: 2 * output}):
                runs[-1].append(tiny.draw(fresh))
        assert all(torch.equal(mine, new) for mine, new in zip(*runs, strict=True))

    def test_one_that_comes_inside_a_block_is_an_error(self, fresh):
        graph = HookGraph(fresh)
        known = "another module was put in the place of unet.*to_v inside the block, as adapters .*; do that before the block"
        rank = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_v"])
        with pytest.raises(SiteNeverRan, match=known), graph.apply(mask(graph)):
            fresh.unet.add_adapter(rank) or tiny.draw(fresh)

    def test_outgoing_norms_honour_every_kind_of_adapter(self, fresh):
        """DoRA scales the whole weight, beside adding to it."""
        fresh.unet.add_adapter(LoraConfig(r=4, use_dora=True, init_lora_weights=False, target_modules=["to_out.0"]))
        mine = HookGraph(fresh)
        (site,) = mine.sites.where(layer=8, role="value")
        reader = fresh.unet.get_submodule(mine.reader(site))
        before = mine.outgoing_norm(site)
        fresh.unet.fuse_lora()
        torch.testing.assert_close(before, reader.base_layer.weight.double().norm(dim=0), atol=1e-5, rtol=1e-5)

    def test_it_is_found_and_folding_into_it_is_refused(self, adapted):
        mine = HookGraph(adapted)
        assert [finding.state for finding in diagnose(adapted) if finding.name == "LoRA"] == ["note"]
        with pytest.raises(UnsupportedModel, match="carries a LoRA; unload it, or fuse it"):
            fold(mine, mask(mine, "all"))


class TestFused:
    @pytest.mark.parametrize("write", [fold, lambda graph, change: export_lora(graph, change, "nowhere")], ids=["fold", "export"])
    def test_weights_that_are_not_used_are_not_changed(self, fresh, write):
        graph = HookGraph(fresh)
        fresh.unet.fuse_qkv_projections()
        with pytest.raises(UnsupportedModel, match="its projections are fused; call `unfuse_qkv_projections\\(\\)` first"):
            write(graph, mask(graph, "all"))

    def test_hooks_on_them_are_an_error_with_that_cause(self, fresh):
        graph = HookGraph(fresh)
        fresh.unet.fuse_qkv_projections()
        with pytest.raises(SiteNeverRan, match="its projections are fused; call `unfuse_qkv_projections"), graph.apply(mask(graph)):
            tiny.draw(fresh)


class TestIpAdapter:
    @pytest.fixture
    def adapter(self, fresh):
        """The weights of an IP-Adapter for this UNet, random."""
        width = fresh.unet.config.cross_attention_dim
        proj = {"proj.weight": torch.randn(4 * width, 64), "proj.bias": torch.zeros(4 * width)}
        proj |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        keys = {}
        for number, name in enumerate(name for name in fresh.unet.attn_processors if "attn2" in name):
            out = fresh.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for kind in ("k", "v"):
                keys[f"{2 * number + 1}.to_{kind}_ip.weight"] = torch.randn(out, width)
        return {"image_proj": proj, "ip_adapter": keys}

    def test_it_is_refused_by_name(self, fresh, adapter):
        fresh.unet._load_ip_adapter_weights([adapter])
        assert "IP-Adapter" in wrong(fresh)
        with pytest.raises(UnsupportedModel, match=r"image tokens of its IP-Adapter pass beside the hooked projections; call `pipe.unload"):
            HookGraph(fresh)

    def test_it_is_refused_when_it_comes_after_the_graph(self, fresh, adapter):
        graph = HookGraph(fresh)
        fresh.unet._load_ip_adapter_weights([adapter])
        with pytest.raises(UnsupportedModel, match="IP-Adapter"), graph.apply(mask(graph)):
            raise AssertionError("no image may be made")


def attention(query, key, value, attn_bias=None, op=None, scale=None):
    """What xformers' kernel computes, on [batch and head, token, channel]."""
    attention.calls += 1
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_bias, scale=scale)


def slice_attention(pipe):
    pipe.unet.set_attention_slice("max")
    assert any("Sliced" in type(each).__name__ for each in pipe.unet.attn_processors.values())


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


#: Every state on one family of each kind of attention; on the others those that are of the most modules.
CASES = [
    (family, state)
    for family in tiny.PIPELINES
    for state in STATES
    if family in ("sd1", "if-1") or state in ("attention slicing", "sequential offload")
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
        fresh.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        graph = HookGraph(fresh)
        (site,) = graph.sites.where(layer=8, role="value")
        weight = graph.module(site).weight
        assert weight.dtype == torch.float8_e4m3fn
        expected = graph.encode([tiny.PROMPT]) @ weight.float().T
        with graph.capture([site]) as captured:
            tiny.draw(fresh, num_inference_steps=1)
        torch.testing.assert_close(captured.select(site.path, rows="conditional")[0], expected, atol=1e-5, rtol=1e-5)
        with graph.apply(ContextSwap.of(graph, graph.sites.where(role=("key", "value")), tiny.OTHER)):
            swapped = tiny.draw(fresh)
        assert torch.equal(swapped, tiny.draw(fresh, tiny.OTHER))
        recording = record(graph, concept, [site], "last", quiet=True)
        means = (graph.encode(list(concept.present))[:, -1] @ weight.float().T).double().mean(dim=0)
        torch.testing.assert_close(recording.mean("present")[site.path], means, atol=1e-5, rtol=1e-5)


class TestTextEncoder:
    def test_a_lora_on_it_is_part_of_the_context(self, fresh):
        """Sites read what the pipeline's own encoder says, adapters included."""
        plain = HookGraph(fresh).encode([tiny.OTHER])
        torch.manual_seed(0)
        fresh.text_encoder.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
        graph = HookGraph(fresh)
        assert not torch.allclose(graph.encode([tiny.OTHER]), plain, atol=1e-2)
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
