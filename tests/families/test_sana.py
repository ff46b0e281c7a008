"""Sana's own: the instruction before its prompts, its normed keys, its mask, its few-step models, and every method on planted pipelines."""

from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

import neuroscope as ns
from neuroscope.testbed import build, planted
from neuroscope.testbed.construction.pipelines import build_unplanted
from tests.families import tiny
from tests.families.finding import LAYER_METHODS, finds_the_planted_layer, localized

SMALL = {"num_inference_steps": 2, "use_resolution_binning": False, "height": 32, "width": 32}
LENGTH = 300


@cache
def graph_of(plant: str) -> ns.HookGraph:
    return ns.HookGraph(build("sana", plant, 0))


@pytest.fixture(scope="module")
def graph() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["sana"]())


@pytest.fixture(scope="module")
def sprint() -> ns.HookGraph:
    """Sana Sprint: guidance is a number that the transformer reads, and no row is unconditional."""
    base = build_unplanted("sana", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {name: value for name, value in base.transformer.config.items() if name[0] != "_"}
        transformer = SanaTransformer2DModel(**(config | {"guidance_embeds": True, "num_layers": 4}))
    transformer.load_state_dict({n: v for n, v in base.transformer.state_dict().items() if n in transformer.state_dict()}, strict=False)
    parts = {name: base.components[name] for name in ("tokenizer", "text_encoder", "vae")}
    pipe = SanaSprintPipeline(**parts, transformer=transformer.eval(), scheduler=SCMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return ns.HookGraph(pipe)


@pytest.mark.parametrize("name", LAYER_METHODS)
def test_every_method_finds_the_planted_layer(name):
    assert finds_the_planted_layer(graph_of("layer"), name, LAYER_METHODS[name])


def test_the_linear_self_attention_of_every_block_is_traced():
    """Behind the planted layer everything carries the concept on, and nothing before it does."""
    graph = graph_of("layer")
    (layer,) = planted(graph.pipe).layers
    assert all(isinstance(block.attn1.processor, SanaLinearAttnProcessor2_0) for block in graph.denoiser.transformer_blocks)
    assert [component.kind for component in graph.components][:2] == ["self", "cross"]
    scores = localized(graph, ns.CausalTracing(component="self"))
    assert len(scores.layers) == len(graph.sites.layers)
    assert scores.to_frame().set_index("layer")["score"][:layer].abs().max() < 0.05


@pytest.mark.parametrize("method", [ns.NeuronGradient(samples=16), ns.IntegratedGradients(fidelity=0)], ids=repr)
def test_every_method_finds_the_planted_neurons(method):
    """By the size of their scores: some push the images on, others back. Precision at k is 1 for at most 200 NFE; chance is 6 of 96."""
    record = planted(graph_of("neurons").pipe)
    ((path, chosen),) = record.neurons.items()
    given = {"pairs": None if isinstance(method, ns.NeuronGradient) else 2, "quiet": True, **record.generation}
    scores = ns.rank(graph_of("neurons"), record.concept, replace(method, roles="value"), layers=record.layers[0], **given)
    table = scores.to_frame().set_index("neuron")
    assert set(table["score"].abs().nlargest(len(chosen)).index) == set(chosen)
    assert set(table["site"]) == {path}
    assert scores.cost.nfe <= 200


def test_a_key_is_what_the_projection_and_its_norm_make_of_the_text(graph):
    """The norm takes the text's length away: keys of a text and of the same text, twice as loud behind the projection, are alike."""
    denoiser = graph.denoiser
    seen = {}

    def keep(_module, args, _output):
        seen.setdefault("read", args[0])

    with ExitStack() as stack:
        stack.callback(denoiser.transformer_blocks[3].attn2.to_k.register_forward_hook(keep).remove)
        tiny.draw(graph.pipe, guidance_scale=1.0, num_inference_steps=1)
    conditions = graph.text.conditions([tiny.PROMPT])
    projected = denoiser.caption_projection(conditions.context)
    normed = projected / (projected.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * denoiser.caption_norm.weight
    torch.testing.assert_close(seen["read"], normed, rtol=1e-6, atol=1e-6)  # the norm rounds to float32
    (site,) = graph.sites.where(layer=3, role="key")
    torch.testing.assert_close(graph.text.read(site, conditions), seen["read"])


def test_prompts_are_encoded_behind_the_instruction_and_negative_prompts_without(graph):
    """As the pipeline encodes them in a run; in lower case and without spaces around them."""
    prompts = ["  A red CIRCLE ", "a star"]
    with torch.no_grad():
        negatives = graph.pipe.encode_prompt(prompts, negative_prompt=["", ""], max_sequence_length=LENGTH)
    found, given = [], {}
    own = type(graph.pipe).encode_prompt

    def listen(*args, **options):
        found[:] = own(graph.pipe, *args, **options)
        given.update(options)
        return tuple(found)

    graph.pipe.encode_prompt = listen
    try:
        graph.pipe(prompts, **SMALL, output_type="latent")
    finally:
        del graph.pipe.encode_prompt
    conditions, negative = graph.text.conditions(prompts), graph.text.negative()
    assert len(given["complex_human_instruction"]) > 3
    for mine, theirs in zip((conditions.context, conditions.mask, negative.context, negative.mask), found, strict=True):
        assert torch.equal(mine.expand_as(theirs), theirs)
    assert not torch.allclose(conditions.context, negatives[0])
    assert torch.equal(graph.text.conditions(["a red circle"]).context, conditions.context[:1])


@pytest.mark.parametrize(("prompt", "words"), [("a red circle", 3), ("  A red CIRCLE and a white square", 7), ("a star", 2)])
def test_tokens_stand_where_the_encoder_begins_to_tell_their_words_apart(graph, prompt, words):
    """The instruction shifts them: a causal encoder's states are alike before the word that differs. Padding is never read."""
    *rest, last = prompt.split(" ")
    conditions = graph.text.conditions([prompt, " ".join([*rest, "zig" if last != "zig" else "zag"])])
    differs = (conditions.context[0] - conditions.context[1]).abs().amax(dim=-1) > 1e-9
    (place,) = graph.text.select_tokens([prompt], "subject", last).nonzero()[1].tolist()
    assert int(differs.nonzero()[0]) == place
    mask = conditions.mask[0].bool()
    assert mask[place]
    assert not mask[place + 1 :].any()
    kinds = graph.text.kinds_of_tokens([prompt], last)[0]
    assert [kind for kind in kinds.tolist() if kind in ("subject", "last subject")] == ["last subject"]
    before = int((kinds[:place] == "before").sum())
    assert before >= words - 1


def test_hidden_tokens_are_never_read(graph):
    """Whatever padding holds, the image is the same, bit by bit; what it sees, it reads."""
    conditions = graph.text.conditions([tiny.PROMPT])
    for hidden in (True, False):
        chosen = conditions.mask.bool() != hidden
        other = replace(conditions, context=torch.where(chosen[..., None], conditions.context + 3.0, conditions.context))
        images = []
        for each in (conditions, other):
            given = graph.text.arguments(each, graph.text.negative())
            images.append(graph.pipe(**given, generator=torch.Generator().manual_seed(0), output_type="latent", **SMALL).images)
        assert torch.equal(*images) is hidden


class TestSprint:
    def draw(self, graph, prompt=tiny.PROMPT, **options):
        return graph.pipe(
            prompt, generator=torch.Generator().manual_seed(0), output_type="latent", clean_caption=False, **(SMALL | options)
        ).images

    @pytest.mark.parametrize("scale", [4.5, 1.0])
    def test_rows_are_those_of_prompts_and_all_layers_swapped_are_the_other_prompt(self, sprint, scale):
        swap = ns.ContextSwap.of(sprint, sprint.sites.where(role=("key", "value")), tiny.OTHER)
        with sprint.apply(swap), tiny.counted(sprint.denoiser) as calls:
            swapped = self.draw(sprint, guidance_scale=scale)
        assert calls == [1, 1]
        assert torch.equal(swapped, self.draw(sprint, tiny.OTHER, guidance_scale=scale))
        assert not torch.equal(swapped, self.draw(sprint, guidance_scale=scale))
        empty = ns.ContextSwap.of(sprint, sprint.sites.where(role=("key", "value")), tiny.PROMPT)
        with sprint.apply(empty):
            assert torch.equal(self.draw(sprint), self.draw(sprint))

    def test_a_mask_is_zeroed_values(self, sprint):
        (site,) = sprint.sites.where(layer=2, role="value")
        with sprint.apply(ns.NeuronMask(ns.Neurons.at(sprint.sites, {site.path: range(8)}))):
            masked = self.draw(sprint)
        module = sprint.module(site)

        def zero(_module, _args, output):
            return torch.cat([torch.zeros_like(output[..., :8]), output[..., 8:]], dim=-1)

        handle = module.register_forward_hook(zero)
        try:
            assert torch.equal(self.draw(sprint), masked)
        finally:
            handle.remove()

    def test_layers_are_localized(self, sprint):
        concept = ns.Concept("stipple", [tiny.PROMPT.replace("plain", "stipple")], [tiny.PROMPT])
        options = {"quiet": True, "keep_images": 0, "clean_caption": False, **SMALL}
        scores = ns.localize(sprint, concept, ns.LocoGen(window=4), ns.LatentShare(), [0], **options)
        assert scores.to_frame()["score"].iloc[0] == pytest.approx(1.0)

    def test_a_negative_prompt_is_refused(self, sprint):
        concept = ns.Concept("stipple", [tiny.PROMPT.replace("plain", "stipple")], [tiny.PROMPT])
        with pytest.raises(ns.InvalidInput, match="SanaSprintPipeline takes no negative_prompt, so it would be ignored"):
            ns.localize(sprint, concept, ns.LocoGen(), ns.LatentShare(), [0], quiet=True, negative_prompt="grey", **SMALL)

    def test_a_part_of_its_schedule_is_refused(self, sprint):
        """Its transformer is told of other timesteps than its scheduler lists."""
        (site,) = sprint.sites.where(layer=2, role="value")
        early = ns.NeuronMask(ns.Neurons.at(sprint.sites, {site.path: range(8)}), steps=(0.0, 0.5))
        message = "needs a pipeline's schedule, but the denoiser was called at a timestep"
        with pytest.raises(ns.InvalidInput, match=message), sprint.apply(early):
            self.draw(sprint)


@pytest.mark.parametrize("instruction", [["Describe this:"], None])
def test_another_instruction_is_refused(graph, instruction):
    with pytest.raises(ns.InvalidInput, match="another complex_human_instruction would move the words"):
        graph.text.conditions(["a red circle"], complex_human_instruction=instruction)
