"""Wan's own: two calls a guided step, padding that is attended, and two transformers that take turns by noise level."""

from contextlib import ExitStack
from functools import cache

import pytest
import torch
from diffusers import WanPipeline

import neuroscope as ns
from neuroscope.generation.teacher_forcing import record_steps
from neuroscope.testbed.construction.pipelines import build_unplanted
from tests.families import tiny

PROMPT, OTHER = "a red circle", "a blue star and a ring in the style of stipple"
GUIDED = {"guidance_scale": 4.0}
BOTH = ("transformer", "transformer_2")


@cache
def model() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["wan"]())


@cache
def two() -> WanPipeline:
    """Wan 2.2: of two steps the first is the first transformer's, the other the second's."""
    first, second = tiny.PIPELINES["wan"](), tiny.exact(build_unplanted("wan", 1))
    pipe = WanPipeline(**(first.components | {"transformer_2": second.transformer}), boundary_ratio=0.9)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def graphs() -> tuple[ns.HookGraph, ns.HookGraph]:
    first, second = (ns.HookGraph(two(), component=name) for name in BOTH)
    return first, second


def draw(pipe: WanPipeline, prompt: str = PROMPT, **options: object) -> torch.Tensor:
    return tiny.draw(pipe, prompt, **options)


def swap(graph: ns.HookGraph, prompt: str = OTHER, **options: object) -> ns.ContextSwap:
    return ns.ContextSwap.of(graph, graph.sites.where(role=("key", "value")), prompt, **options)


def test_a_guided_step_is_a_call_for_the_prompt_and_one_for_the_negative_prompt():
    (site,) = model().sites.where(layer=3, role="value")
    with model().capture([site]) as captured, tiny.counted(model().denoiser) as calls:
        draw(model().pipe, negative_prompt="a cross", **GUIDED)
    assert calls == [1, 1, 1, 1]
    conditional = captured.select(site.path, rows="conditional")
    assert conditional.shape[:2] == (2, 1)
    assert torch.equal(captured[site.path][0::2], conditional)
    assert captured.select(site.path, step=1).shape[0] == 2


def test_calls_are_told_apart_where_prompt_and_negative_prompt_are_the_same():
    """By their order; a swap of the prompt's rows leaves the other call alone."""
    options = {"negative_prompt": PROMPT, **GUIDED}
    with model().apply(swap(model())):
        found = draw(model().pipe, **options)
    assert torch.equal(found, draw(model().pipe, OTHER, **options))
    assert not torch.equal(found, draw(model().pipe, OTHER, **(options | {"negative_prompt": OTHER})))


def test_recorded_steps_are_of_the_prompts_call():
    with record_steps(model(), None) as found:
        draw(model().pipe, negative_prompt="a cross", **GUIDED)
    assert [step[0].step for step in found] == [0, 1]
    conditions = model().text.conditions([PROMPT])
    assert all(torch.equal(step[0].inputs["encoder_hidden_states"], conditions.context) for step in found)


def test_padding_is_zeros_and_is_attended():
    """Whatever stands there, every layer reads it; a mask hides nothing."""
    conditions = model().text.conditions([PROMPT])
    count = len(model().text.tokenizer([PROMPT])["input_ids"][0])
    assert conditions.mask is None
    assert conditions.context.shape[1] == 512
    assert not conditions.context[:, count:].any()
    other = conditions.context.clone()
    other[:, -1] = 1.0
    images = [draw_of(each) for each in (conditions.context, other)]
    assert (images[0] - images[1]).norm() > 1e-6 * images[0].norm()


def draw_of(context: torch.Tensor) -> torch.Tensor:
    options = tiny.of_pixels(model().pipe, 1) | {"num_inference_steps": 1, "guidance_scale": 1.0}
    return model().pipe(prompt_embeds=context, generator=torch.Generator().manual_seed(0), **options)[0]


@pytest.mark.parametrize("options", [{"guidance_scale": 1.0}, GUIDED], ids=["unguided", "guided"])
def test_both_transformers_swapped_is_the_target_run_and_neither_is_the_source(options):
    expected, own = draw(two(), OTHER, **options), draw(two(), **options)
    made = {}
    for chosen in ((0,), (1,), (0, 1)):
        with ExitStack() as stack:
            for number in chosen:
                stack.enter_context(graphs()[number].apply(swap(graphs()[number])))
            made[chosen] = draw(two(), **options)
    assert torch.equal(made[0, 1], expected)
    for alone in ((0,), (1,)):
        assert (made[alone] - expected).norm() > 1e-3 * (own - expected).norm()
        assert (made[alone] - own).norm() > 1e-3 * (own - expected).norm()
    with graphs()[0].apply(swap(graphs()[0], PROMPT)), graphs()[1].apply(swap(graphs()[1], PROMPT)):
        assert torch.equal(draw(two(), **options), own)


@pytest.mark.parametrize("number", [0, 1])
def test_a_graph_is_of_one_transformer(number):
    graph = graphs()[number]
    assert all(path.startswith(f"{BOTH[number]}.blocks.") for path in graph.sites.paths)
    assert graph.denoiser is getattr(two(), BOTH[number])
    with graph.capture() as captured:
        draw(two(), **GUIDED)
    site = graph.sites.where(role="value")[0]
    assert captured.select(site.path, step=number).shape[0] == 2  # both calls of its own step, and no other
    assert captured[site.path].shape[0] == 2
    conditions = graph.text.conditions([PROMPT])
    with torch.no_grad():
        torch.testing.assert_close(captured.select(site.path, rows="conditional")[0], graph.module(site)(graph.text.read(site, conditions)))


@pytest.mark.parametrize("number", [0, 1])
def test_methods_find_layers_of_either_transformer_and_say_what_the_other_carries(number):
    """Predictions are those of its own steps; what the other reads is measured as what a net beside the layers carries."""
    graph = graphs()[number]
    concept = ns.Concept("stipple", [PROMPT], [OTHER])
    options = {"keep_images": 0, "quiet": True} | tiny.of_pixels(two(), 1) | {"num_inference_steps": 2, "guidance_scale": 1.0}
    del options["output_type"]
    scores = ns.localize(graph, concept, ns.LocoGen(window=6), ns.LatentShare(), [0], **options)
    own, other, goal = draw(two(), guidance_scale=1.0), None, draw(two(), OTHER, guidance_scale=1.0)
    with graphs()[1 - number].apply(swap(graphs()[1 - number])):
        other = draw(two(), guidance_scale=1.0)
    assert scores.control_share[0] == pytest.approx(ns.LatentShare()(other, own, goal), abs=1e-6)
    forced = ns.localize(graph, concept, ns.TeacherForced(fidelity=0), ns.LatentShare(), [0], **options)
    assert len(forced.layers) == 12
    if number == 0:  # of one recorded step of two, the second's
        with pytest.raises(ns.InvalidInput, match="none of the recorded steps is one in which the transformer runs; record more steps"):
            ns.localize(graph, concept, ns.TeacherForced(steps=1, fidelity=0), ns.LatentShare(), [0], **options)


def test_a_run_in_which_a_transformer_never_ran_is_an_error():
    with (
        pytest.raises(ns.SiteNeverRan, match="or in steps in which another denoiser ran alone .see transformer_2."),
        graphs()[1].apply(swap(graphs()[1])),
    ):
        draw(two(), num_inference_steps=1)


def test_the_first_transformer_is_the_one_unless_told_otherwise():
    assert ns.HookGraph(two()).denoiser is two().transformer
    with pytest.raises(ns.InvalidInput, match="component 'transformer_3' is unknown; choose one of transformer, transformer_2"):
        ns.HookGraph(two(), component="transformer_3")
    with pytest.raises(ns.InvalidInput, match="component 'transformer_2' is unknown; choose one of transformer"):
        ns.HookGraph(model().pipe, component="transformer_2")


def test_an_edit_of_either_transformer_is_folded():
    graph = graphs()[1]
    concept = ns.Concept("stipple", [PROMPT], [OTHER])
    change = ns.edit(graph, concept, ns.LocoEdit(tokens="all", ridge=1e-4), 3)
    with graph.apply(change):
        applied = draw(two(), guidance_scale=1.0)
    untouched = draw(two(), guidance_scale=1.0)
    with ns.fold(graph, change):
        folded = draw(two(), guidance_scale=1.0)
    assert (applied - folded).norm() < 1e-3 * (applied - untouched).norm()
    assert torch.equal(draw(two(), guidance_scale=1.0), untouched)


def test_transformers_that_read_an_image_through_keys_of_their_own_are_refused():
    small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 12, "ffn_dim": 12, "text_dim": 8}
    with pytest.raises(ns.UnsupportedModel, match="takes its text in a way that neuroscope does not know ..'added_kv_proj_dim': 12"):
        ns.sites_from_config({"_class_name": "WanTransformer3DModel", "added_kv_proj_dim": 12, "image_dim": 8, **small})
