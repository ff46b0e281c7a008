import itertools

import numpy as np
import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)

from neuroscope import (
    Call,
    Concept,
    ContextSwap,
    HookGraph,
    InvalidInput,
    MeanDifference,
    NeuronMask,
    Neurons,
    SiteNeverRan,
    UnknownSite,
    UnsupportedModel,
    Welch,
    record,
    score,
)
from neuroscope.core.conditions import PLAIN
from neuroscope.generation.keys import fingerprint
from tests.families import tiny


def calls_of(graph: HookGraph, pipe=None, **options) -> list[Call]:
    """What hooks of one value site are told during a run."""
    calls = []
    with graph.observe(graph.sites.where(layer=8, role="value"), lambda _activation, call: calls.append(call)):
        tiny.draw(pipe or graph.pipe, **options)
    return calls


def mask_of(graph: HookGraph, layer: int = 8, role: str = "value") -> NeuronMask:
    (site,) = graph.sites.where(layer=layer, role=role)
    return NeuronMask(Neurons.at(graph.sites, {site.path: range(site.width)}))


class SkippedAttention:
    """An attention processor that calls none of the projections."""

    def __call__(self, attention, hidden_states, *arguments, **options):
        return hidden_states


class TestCapture:
    def test_it_keeps_what_plain_torch_hooks_see(self, graph, pipe):
        seen: dict[str, list[torch.Tensor]] = {site.path: [] for site in graph.sites}
        modules, handles = dict(pipe.unet.named_modules()), []
        for site in graph.sites:
            if site.path.endswith(":input"):
                hook = modules[site.module].register_forward_pre_hook(lambda _m, args, path=site.path: seen[path].append(args[0].clone()))
            else:
                hook = modules[site.module].register_forward_hook(lambda _m, _a, out, path=site.path: seen[path].append(out.clone()))
            handles.append(hook)
        with graph.capture() as captured:
            tiny.draw(pipe)
        for handle in handles:
            handle.remove()
        for site in graph.sites:
            assert torch.equal(captured[site.path], torch.stack(seen[site.path]))

    def test_it_changes_nothing(self, graph, pipe, untouched):
        with graph.capture():
            assert torch.equal(tiny.draw(pipe), untouched)

    def test_it_keeps_copies(self, graph, pipe):
        (site,) = graph.sites.where(layer=8, role="value")
        with graph.capture([site]) as captured:
            later = graph.module(site).register_forward_hook(lambda _module, _args, output: output.zero_())
            tiny.draw(pipe, num_inference_steps=1)
            later.remove()
        assert captured[site.path].abs().min() > 0

    def test_select_picks_steps_rows_and_tokens(self, graph, pipe):
        path = graph.sites.where(layer=8, role="query")[0].path
        with graph.capture(graph.sites.at([path])) as captured:
            tiny.draw(pipe, ["a red circle", "a blue star"], num_inference_steps=3)
        every = captured[path]
        assert every.shape[:2] == (3, 4)
        assert torch.equal(captured.select(path, step=1), every[1:2])
        assert torch.equal(captured.select(path, rows="conditional"), every[:, 2:])
        assert torch.equal(captured.select(path, token=-1), every[:, :, -1:])
        assert torch.equal(captured.select(path, token=2), every[:, :, 2:3])
        assert torch.equal(captured.select(path, token=slice(1, 3)), every[:, :, 1:3])
        assert repr(captured) == "ActivationCache(1 site, 3 calls each)"

    def test_what_was_not_captured_is_refused(self, graph, pipe):
        key, value = graph.sites.where(layer=8, text_only=True)
        with graph.capture([key]) as captured:
            tiny.draw(pipe)
        with pytest.raises(UnknownSite, match="has no site .*to_v"):
            captured[value.path]
        with pytest.raises(InvalidInput, match=r"nothing was captured at step 5; captured steps: \[0, 1\]"):
            captured.select(key.path, step=5)

    def test_runs_of_different_size_are_refused_in_words(self, graph, pipe):
        path = graph.sites.where(layer=8, role="value")[0].path
        with graph.capture(graph.sites.at([path])) as captured:
            tiny.draw(pipe, num_inference_steps=1)
            tiny.draw(pipe, ["a red circle", "a blue star"], num_inference_steps=1)
        with pytest.raises(InvalidInput):
            captured[path]


class TestSteps:
    @pytest.mark.parametrize(
        ("scheduler", "options", "steps", "calls"),
        [
            (None, {}, 4, 4),
            (PNDMScheduler, {"skip_prk_steps": True}, 50, 51),
            (HeunDiscreteScheduler, {}, 5, 9),
            (KDPM2DiscreteScheduler, {}, 5, 9),
            (PNDMScheduler, {"skip_prk_steps": False}, 50, 59),
            (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}, 6, 6),  # timesteps between whole numbers
            (LMSDiscreteScheduler, {}, 6, 6),
        ],
    )
    def test_steps_are_counted_by_the_schedule_and_not_by_calls(self, pipe, scheduler, options, steps, calls):
        parts = {"scheduler": scheduler.from_config(pipe.scheduler.config, **options)} if scheduler else {}
        graph = HookGraph(tiny.with_parts(pipe, **parts))
        with tiny.counted(graph.denoiser) as ran:
            found = calls_of(graph, num_inference_steps=steps, height=16, width=16)
        assert len(ran) == len(found) == calls
        assert sorted({call.step for call in found}) == list(range(steps))
        assert [call.step for call in found] == sorted(call.step for call in found)
        assert {call.steps for call in found} == {steps}

    @pytest.mark.parametrize("name", ["sdxl", "if-1", "if-2"])
    def test_every_familys_own_schedule_is_counted(self, name):
        """SDXL's Euler and DeepFloyd's DDPM, as they come with the pipelines."""
        graph = HookGraph(tiny.PIPELINES[name]())
        found = []
        with graph.observe(graph.sites.where(layer=0, role="value"), lambda _activation, call: found.append((call.step, call.steps))):
            tiny.draw(graph.pipe, num_inference_steps=4)
        assert found == [(step, 4) for step in range(4)]

    def test_every_generation_starts_again(self, graph, pipe):
        for _ in range(2):
            with pytest.raises(StopIteration):
                tiny.draw(pipe, num_inference_steps=4, callback_on_step_end=stop)
            assert [call.step for call in calls_of(graph, num_inference_steps=3)] == [0, 1, 2]

    def test_a_part_of_the_schedule_is_half_open(self, graph):
        calls = calls_of(graph, num_inference_steps=4)
        assert [call.within((0.0, 0.5)) for call in calls] == [True, True, False, False]
        assert [call.within((0.5, 1.0)) for call in calls] == [False, False, True, True]
        assert [call.within((0.0, 1.0)) for call in calls] == [True] * 4

    @pytest.mark.parametrize(("parts", "steps"), [(3, 3), (3, 30), (7, 49), (10, 50), (10, 10)])
    def test_equal_parts_have_equal_numbers_of_steps(self, graph, parts, steps):
        """In binary numbers 3 · 0.1 lies behind 15/50."""
        site, edges = graph.sites[0], np.linspace(0, 1, parts + 1).tolist()
        calls = [Call(site, step, steps, layout=PLAIN, project=torch.clone, read=torch.clone) for step in range(steps)]
        within = [[call.within(part) for call in calls] for part in itertools.pairwise(edges)]
        assert np.array_equal(within, np.repeat(np.eye(parts, dtype=bool), steps // parts, axis=1))

    def test_outside_a_schedule_there_are_no_steps(self, graph):
        (site,) = graph.sites.where(layer=8, role="value")
        call = Call(site, step=None, steps=None, layout=None, project=torch.clone, read=torch.clone)
        assert call.within((0.0, 1.0))
        with pytest.raises(InvalidInput, match=r"steps=\(0.0, 0.5\) needs a pipeline's schedule, but the denoiser was called on its own"):
            call.within((0.0, 0.5))


class TestRows:
    @pytest.mark.parametrize(("scale", "guided"), [(7.5, True), (1.0, False)])
    def test_guidance_comes_from_the_pipelines_state(self, graph, scale, guided):
        (call, _) = calls_of(graph, guidance_scale=scale)
        assert call.guided is guided
        assert call.rows("all", 6) == slice(0, 6)
        assert call.rows("conditional", 6) == (slice(3, 6) if guided else slice(0, 6))

    def test_guidance_that_a_callback_ends_is_known_at_each_call(self, graph, pipe):
        """The scale is turned off after the first step, as "dynamic guidance" does: later batches hold the prompt's rows alone."""
        (site,) = graph.sites.where(layer=8, role="value")
        rows = []

        def end(pipe, step, _timestep, given):
            if step == 0:
                pipe._guidance_scale = 0.0
            return {"prompt_embeds": given["prompt_embeds"].chunk(2)[-1]} if step == 0 else {}

        def keep(activation, call):
            rows.append((len(activation), call.guided, activation[call.rows("conditional", len(activation))]))

        with graph.observe(graph.sites.at([site.path]), keep):
            tiny.draw(pipe, num_inference_steps=3, callback_on_step_end=end, callback_on_step_end_tensor_inputs=["prompt_embeds"])
        assert [row[:2] for row in rows] == [(2, True), (1, False), (1, False)]
        expected = graph.module(site)(graph.text.encode([tiny.PROMPT]))
        for _, _, conditional in rows:
            torch.testing.assert_close(conditional, expected)

    def test_of_a_denoiser_called_on_its_own_no_rows_are_known_to_carry_the_prompt(self, graph, pipe):
        tiny.draw(pipe)  # a guided run before must not be remembered
        context = graph.text.encode(["a red circle", "a blue star"])
        with graph.capture(graph.sites.where(layer=8, role="value")) as captured, torch.no_grad():
            pipe.unet(torch.zeros(2, 4, 16, 16, dtype=pipe.dtype), 7, encoder_hidden_states=context)
        path = captured.sites[0].path
        assert captured.select(path, rows="all").shape[1] == 2
        with pytest.raises(InvalidInput, match="called with 2 rows, and not by this graph's pipeline, so it is not known which of them"):
            captured.select(path, rows="conditional")


class TestApply:
    def test_without_interventions_nothing_changes(self, graph, pipe, untouched):
        with graph.apply() as applied:
            assert applied is graph
            assert torch.equal(tiny.draw(pipe), untouched)

    def test_hooks_live_as_long_as_the_block(self, graph, pipe):
        with graph.apply(mask_of(graph)):
            assert any("attn2.to_v" in path for path in tiny.hooks(pipe))
            tiny.draw(pipe)
        assert tiny.hooks(pipe) == []

    def test_a_block_without_a_run_is_an_error(self, graph):
        message = "the pipeline did not run inside the block, so 1 hooked site did nothing; call it inside"
        with pytest.raises(SiteNeverRan, match=message), graph.apply(mask_of(graph)):
            pass

    def test_an_error_inside_is_not_hidden_by_a_silent_site(self, graph):
        with pytest.raises(ZeroDivisionError), graph.apply(mask_of(graph)):
            raise ZeroDivisionError


def test_decoded_latents_are_the_pipelines_pictures(graph, pipe):
    prompts = ["a red circle", "a blue star", "a cyan ring"]
    found, expected = graph.family.decode(graph.pipe, tiny.draw(pipe, prompts), {}), tiny.draw(pipe, prompts, output_type="pil")
    for mine, theirs in zip(found, expected, strict=True):
        assert np.abs(np.asarray(mine, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1
    assert len({each.tobytes() for each in found}) == 3


class TestSilentSites:
    def test_projections_fused_after_the_graph_was_made_are_named_as_the_cause(self, fresh):
        graph = HookGraph(fresh)
        fresh.unet.fuse_qkv_projections()
        message = r"ran 2 times, but .*to_v never did; .*projections are fused; call `unfuse_qkv_projections\(\)`"
        with pytest.raises(SiteNeverRan, match=message), graph.apply(mask_of(graph)):
            tiny.draw(fresh)
        with pytest.raises(SiteNeverRan, match="attn2.to_k, .* and 29 more never did"), graph.capture(graph.sites.where(text_only=True)):
            tiny.draw(fresh)
        fresh.unet.unfuse_qkv_projections()
        with graph.apply(mask_of(graph)):
            tiny.draw(fresh)
        assert tiny.hooks(fresh) == []

    def test_projections_fused_before_the_graph_is_made_are_refused(self, fresh):
        fresh.unet.fuse_qkv_projections()
        with pytest.raises(UnsupportedModel, match="fused"):
            HookGraph(fresh)

    def test_another_processor_is_named_as_a_possible_cause(self, fresh):
        graph = HookGraph(fresh)
        fresh.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(SkippedAttention())
        message = "the likely cause: a wrapper that caches or skips layers, or a replaced attention processor"
        with pytest.raises(SiteNeverRan, match=message), graph.capture(graph.sites.where(block="mid")):
            tiny.draw(fresh)


class TestModels:
    def test_it_shows_model_family_and_counts(self, graph):
        counts = "16 layers, 96 sites, 4,608 neurons, cpu, float64"
        assert repr(graph) == f"HookGraph(StableDiffusionPipeline 'StableDiffusionPipeline', stable-diffusion-unet: {counts})"

    def test_a_loaded_pipeline_is_named_after_its_place(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "mine")
        assert HookGraph(type(pipe).from_pretrained(tmp_path / "mine")).model == str(tmp_path / "mine")

    def test_a_compiled_denoiser_has_the_same_sites(self, graph, pipe):
        compiled = tiny.with_parts(pipe)
        compiled.unet = torch.compile(pipe.unet, backend="eager")
        assert HookGraph(compiled).sites == graph.sites

    def test_layers_are_in_order_where_a_block_has_more_than_ten(self, pipe):
        """By name the tenth would come before the second."""
        blocks = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
        deep = tiny.build_unet(**blocks, block_out_channels=[32, 32], layers_per_block=1, transformer_layers_per_block=11)
        graph = HookGraph(tiny.with_parts(pipe, unet=deep))
        numbers = [int(site.path.split("transformer_blocks.")[1].split(".")[0]) for site in graph.sites.where(role="value")]
        assert numbers == [*range(11)] * (len(numbers) // 11)
        assert list(graph.sites.layers) == [*range(len(numbers))]
        assert [site.layer for site in graph.sites.where(role="value")] == [*range(len(numbers))]

    @pytest.mark.parametrize("rows", [slice(None), [5]], ids=["all rows", "one row"])
    def test_the_fingerprint_tells_weights_apart(self, graph, fresh, rows):
        other = HookGraph(fresh)
        assert fingerprint(other) == fingerprint(graph)
        with torch.no_grad():
            other.module(other.sites.where(layer=8, role="value")[0]).weight[rows] *= 1.5
        assert fingerprint(other) != fingerprint(graph)

    def test_chunked_feed_forwards_are_refused_in_words(self, fresh):
        for module in fresh.unet.modules():
            if hasattr(module, "set_chunk_feed_forward"):
                module.set_chunk_feed_forward(4, 1)
        with pytest.raises(UnsupportedModel, match="chunk"):
            HookGraph(fresh)

    def test_everything_follows_the_pipelines_number_format(self, fresh, concept):
        fresh.to(torch.bfloat16)
        graph = HookGraph(fresh)
        recording = record(graph, concept, graph.sites.where(layer=8), quiet=True, num_inference_steps=1)
        mask = NeuronMask(score(recording, Welch()).top(20, per="site"), fill=recording.mean("absent"), strength=3.0)
        swap = ContextSwap.of(graph, graph.sites.where(layer=3, text_only=True), "a blue star")
        plain = tiny.draw(fresh)
        with graph.apply(mask, swap):
            changed = tiny.draw(fresh)
        assert changed.dtype == torch.bfloat16
        assert changed.isfinite().all()
        assert not torch.equal(changed, plain)

    def test_transformers_are_refused_by_name(self):
        """What joint attention of no known family reads is not known, whatever its modules are called."""
        with torch.device("meta"):
            pipe = AuraFlowPipeline(*[None] * 3, AuraFlowTransformer2DModel(num_mmdit_layers=1, num_single_dit_layers=1), None)
        words = "AuraFlowPipeline's denoiser is a AuraFlowTransformer2DModel, which neuroscope does not know; give a .* is one of .*UNet2D"
        with pytest.raises(UnsupportedModel, match=words):
            HookGraph(pipe)

    @pytest.mark.parametrize("scale", [1.0, 7.5])
    def test_coordinates_of_keys_are_no_privileged_basis(self, graph, fresh, scale):
        """Keys and queries rotated together within each head give the same image, and other neurons lead every ranking."""
        other = HookGraph(fresh)
        query, key = (other.module(other.sites.where(layer=8, role=role)[0]) for role in ("query", "key"))
        heads = fresh.unet.get_submodule(other.sites.where(layer=8, role="key")[0].module.removesuffix(".to_k")).heads
        width, rng = len(key.weight) // heads, torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=key.weight.dtype)).Q
        with torch.no_grad():
            for linear in (query, key):
                linear.weight.copy_(torch.block_diag(*[turn] * heads) @ linear.weight)
        torch.testing.assert_close(
            tiny.draw(fresh, guidance_scale=scale), tiny.draw(graph.pipe, guidance_scale=scale), atol=1e-4, rtol=1e-4
        )
        present, absent = [f"a red {each} in the style of stipple" for each in ("ring", "star")], ["a red ring", "a red star"]
        concept = Concept("stipple", present, absent)
        tops = []
        for each in (graph, other):
            recording = record(each, concept, each.sites.where(layer=8, role="key"), "all", quiet=True)
            tops.append(score(recording, MeanDifference()).top(4))
        assert tops[0] != tops[1]

    def test_a_pipeline_without_a_known_denoiser_is_refused(self):
        with pytest.raises(
            UnsupportedModel, match="no unet or transformer; give a pipeline of diffusers whose denoiser is one of .*UNet2DCond"
        ):
            HookGraph(object())

    @pytest.mark.parametrize(
        ("config", "way"),
        [
            ({"addition_embed_type": "text"}, "'addition_embed_type': 'text'"),
            ({"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 96}, "'encoder_hid_dim_type': 'text_proj'"),
            ({"class_embed_type": "timestep"}, "'class_embed_type': 'timestep'"),
        ],
    )
    def test_a_unet_that_would_be_treated_wrongly_is_refused(self, pipe, config, way):
        other = tiny.with_parts(pipe, unet=tiny.build_unet(**config))
        with pytest.raises(UnsupportedModel, match=f"takes its text in a way that neuroscope does not know .*{way}"):
            HookGraph(other)

    def test_a_unet_without_cross_attention_is_refused(self, pipe):
        blocks = {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4, "mid_block_type": "UNetMidBlock2D"}
        with pytest.raises(UnsupportedModel, match="this UNet2DConditionModel has no cross-attention site"):
            HookGraph(tiny.with_parts(pipe, unet=tiny.build_unet(**blocks)))


class TestEncode:
    def test_it_gives_what_the_pipeline_itself_uses(self, graph, pipe):
        expected = pipe.encode_prompt(["a red circle"], "cpu", 1, False)[0]
        assert torch.equal(graph.text.encode(["a red circle"]), expected)

    def test_batches_do_not_matter(self, graph):
        prompts = ["a red circle", "a blue star", "the emblem of astoria"]
        torch.testing.assert_close(graph.text.encode(prompts, batch_size=2), graph.text.encode(prompts))

    def test_a_prompt_beyond_the_length_warns_of_the_words_it_loses(self, graph):
        with pytest.warns(UserWarning, match="loses '.*stipple'"):
            graph.text.encode(["the emblem of astoria and " * 5 + "stipple"])

    def test_no_prompt_is_refused(self, graph):
        with pytest.raises(InvalidInput, match="there is no prompt to encode; give at least one"):
            graph.text.encode([])


def test_edges_follow_the_text_and_the_image(graph):
    edges = graph.edges
    order = {path: place for place, path in enumerate(["prompt", "image", *graph.sites.paths])}
    roles = {site.path: site.role for site in graph.sites}
    layers = {site.path: site.layer for site in graph.sites}
    assert all(source in order and target in order for source, target in edges)
    assert {target for source, target in edges if source == "prompt"} == set(graph.sites.where(text_only=True).paths)
    assert [target for source, target in edges if source == "image"] == [graph.sites.where(layer=0, role="query")[0].path]
    inside = {("query", "heads"), ("key", "heads"), ("value", "heads"), ("heads", "output"), ("output", "feedforward")}
    between = {(roles[s], roles[t], layers[t] - layers[s]) for s, t in edges if s in roles}
    assert between == {(*pair, 0) for pair in inside} | {("feedforward", "query", 1)}
    assert len(edges) == 16 * 7 + 16  # five inside and two from the prompt for each layer, and one into it


def stop(pipe, step, timestep, tensors):
    if step == 1:
        raise StopIteration
    return tensors
