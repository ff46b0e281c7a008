"""Prompts whose tokens attention sees through a mask: what a swap does to it, by plain hooks on a real PixArt pipeline."""

from contextlib import ExitStack

import pytest
import torch

import neuroscope as ns
from neuroscope.core.conditions import Conditions
from neuroscope.core.intervention import Call
from neuroscope.generation.teacher_forcing import TeacherForcing, record_steps
from neuroscope.localization.screening.local_attention import for_each_attention
from tests.families import tiny

SHORT, LONG = "a star", "a red circle and a white square in the style of plain"
LAYER = 5
BOTH = ("key", "value")
UNSEEN = -10000.0


@pytest.fixture(scope="module")
def graph() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["pixart"]())


def swap(graph, prompt, roles=BOTH, layer=None, **options) -> ns.ContextSwap:
    sites = graph.sites.where(role=roles) if layer is None else graph.sites.where(role=roles, layer=layer)
    return ns.ContextSwap.of(graph, sites, prompt, **options)


def drawn(graph, prompt, *changes, **options) -> torch.Tensor:
    with ExitStack() as stack:
        if changes:
            stack.enter_context(graph.apply(*changes))
        return tiny.draw(graph.pipe, prompt, **options)


def by_hand(graph, source, target, modules, mask=None, **options) -> torch.Tensor:
    """The source's run in which some modules of one layer read the target's prompt, and its attention has the target's mask, if any.

    `modules` are below the layer's attention; the conditional rows are the last ones.
    """
    conditions = graph.text.conditions([target])
    attention = graph.denoiser.transformer_blocks[LAYER].attn2
    with torch.no_grad():
        other = graph.denoiser.caption_projection(conditions.context)

    def read(_module, args):
        return (torch.cat([args[0][:-1], other]),)

    def hide(_module, args, kwargs):
        bias = (1 - mask.double()) * UNSEEN
        return args, kwargs | {"attention_mask": torch.cat([kwargs["attention_mask"][:-1], bias[None, None]])}

    handles = [getattr(attention, name).register_forward_pre_hook(read) for name in modules]
    handles += [] if mask is None else [attention.register_forward_pre_hook(hide, with_kwargs=True)]
    try:
        return tiny.draw(graph.pipe, source, **options)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("source", "target"), [(SHORT, LONG), (LONG, SHORT), (tiny.PROMPT, tiny.OTHER)])
def test_no_layer_swapped_is_the_source_and_all_are_the_target(graph, source, target, scale):
    expected = drawn(graph, target, guidance_scale=scale)
    own = drawn(graph, source, guidance_scale=scale)
    assert torch.equal(drawn(graph, source, swap(graph, target), guidance_scale=scale), expected)
    assert torch.equal(drawn(graph, source, swap(graph, source), guidance_scale=scale), own)
    assert torch.equal(drawn(graph, source, swap(graph, target, strength=0.0), guidance_scale=scale), own)
    assert (own - expected).norm() > 0.01 * own.norm()


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("source", "target"), [(SHORT, LONG), (LONG, SHORT)])
def test_a_whole_layer_reads_the_other_prompts_mask_and_the_others_keep_theirs(graph, source, target, scale):
    mask = graph.text.conditions([target]).mask[0]
    expected = by_hand(graph, source, target, ("to_k", "to_v"), mask, guidance_scale=scale)
    assert torch.equal(drawn(graph, source, swap(graph, target, layer=LAYER), guidance_scale=scale), expected)
    own_mask = by_hand(graph, source, target, ("to_k", "to_v"), guidance_scale=scale)
    assert (expected - own_mask).norm() > 1e-4 * own_mask.norm()


@pytest.mark.parametrize(("role", "module"), [("key", "to_k"), ("value", "to_v")])
def test_a_part_of_a_layer_keeps_its_own_mask(graph, role, module):
    expected = by_hand(graph, SHORT, LONG, (module,))
    assert torch.equal(drawn(graph, SHORT, swap(graph, LONG, role, LAYER)), expected)
    sites = graph.sites.where(layer=LAYER, role=BOTH)
    every = ns.Neurons.at(graph.sites, {site.path: range(site.width) for site in sites})
    kept = by_hand(graph, SHORT, LONG, ("to_k", "to_v"))
    torch.testing.assert_close(drawn(graph, SHORT, swap(graph, LONG, layer=LAYER, neurons=every)), kept, rtol=1e-9, atol=1e-9)


def test_between_the_prompts_a_token_counts_in_part(graph):
    """The attention's weights before they are made to sum to 1 are multiplied by what lies between the two masks."""
    change = swap(graph, LONG, layer=LAYER, strength=0.25, rows="all")
    (key,) = graph.sites.where(layer=LAYER, role="key")
    masks = [graph.text.conditions([prompt]).mask for prompt in (SHORT, LONG)]
    own, other = (((1 - mask.double()) * UNSEEN)[:, None] for mask in masks)
    found = change.on_mask(own, Call(key, 0, 1, None, lambda tensor: tensor, lambda _conditions, _rows: other))
    torch.testing.assert_close(found.exp(), own.exp().lerp(other.exp(), 0.25))
    assert (found[(own == UNSEEN) & (other == UNSEEN)] == UNSEEN).all()


def test_the_effect_of_a_layer_grows_steadily_with_the_strength(graph):
    own, near, full = (drawn(graph, SHORT, swap(graph, LONG, layer=LAYER, strength=each)) for each in (0.0, 0.999, 1.0))
    assert (full - near).norm() < 0.05 * (full - own).norm()


def test_an_attention_computed_again_reads_the_other_prompts_mask(graph):
    """The output of the first layer, whose image is the same in both runs, as screens compute it and as the swapped run has it."""
    target = graph.text.conditions([LONG])
    with record_steps(graph, 1, stop_after=True) as found:
        tiny.draw(graph.pipe, SHORT, guidance_scale=1.0)
    (step,) = found[0]
    again = for_each_attention(TeacherForcing(graph), step, lambda attention: attention.of(target))
    (output,) = graph.sites.where(layer=0, role="output")
    change = ns.ContextSwap.reading(target, graph.sites.where(layer=0, role=BOTH).paths, rows="all")
    with graph.apply(change), graph.capture([output]) as captured, torch.no_grad():
        graph.denoiser(**step.inputs)
    torch.testing.assert_close(again[0], captured[output.path][0])


def test_every_image_of_a_batch_has_its_own_mask(graph):
    prompts = [SHORT, LONG, SHORT]
    changes = [[], [swap(graph, SHORT, layer=LAYER)], [swap(graph, LONG, layer=LAYER)]]
    with graph.apply_each(changes):
        together = tiny.draw(graph.pipe, prompts)
    for row, (prompt, change) in enumerate(zip(prompts, changes, strict=True)):
        noise = torch.Generator().manual_seed(row)
        with graph.apply(*change):
            alone = graph.pipe(prompt, generator=noise, **({"num_inference_steps": 2} | tiny.of_pixels(graph.pipe, 1))).images
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-8, atol=1e-8)


def test_a_part_of_the_schedule_is_a_part_of_it_for_the_mask_too(graph):
    never, always = swap(graph, LONG, steps=(0.0, 0.5)), swap(graph, LONG)
    half = drawn(graph, SHORT, never)
    for other in (drawn(graph, SHORT), drawn(graph, SHORT, always)):
        assert not torch.equal(half, other)


def test_a_saved_swap_holds_its_mask(graph, tmp_path):
    change = swap(graph, LONG, layer=LAYER)
    ns.save(change, tmp_path / "swap.safetensors")
    loaded = ns.load(tmp_path / "swap.safetensors")
    assert torch.equal(loaded.mask, change.mask)
    assert torch.equal(drawn(graph, SHORT, loaded), drawn(graph, SHORT, change))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 3), r"the swap's mask has shape \(1, 3\), and its context \(1, 120, 64\); give \[prompt, token\]"),
        (torch.full((1, 120), 2), "the swap's mask holds other numbers than 0 and 1; take it from graph.text.conditions"),
        ([1.0], "the swap's mask is "),
    ],
)
def test_masks_that_are_none_are_refused(graph, untyped, mask, message):
    conditions = graph.text.conditions([LONG])
    with pytest.raises(ns.InvalidInput, match=message):
        ns.ContextSwap(graph.sites.where(layer=LAYER, role=BOTH).paths, conditions.context, mask=mask)


def test_a_swap_of_a_layer_without_a_mask_is_refused(graph):
    context = graph.text.encode([LONG])
    whole = ns.ContextSwap(graph.sites.where(layer=LAYER, role=BOTH).paths, context)
    with pytest.raises(ns.InvalidInput, match="holds no mask, which the attention of its layers reads; make it with graph.text.cond"):
        drawn(graph, SHORT, whole)
    values = ns.ContextSwap(graph.sites.where(layer=LAYER, role="value").paths, context)
    assert torch.equal(drawn(graph, SHORT, values), drawn(graph, SHORT, swap(graph, LONG, "value", LAYER)))


def test_conditions_carry_their_mask():
    both = Conditions.of([Conditions(torch.zeros(1, 3, 2), mask=torch.tensor([[1, value, 0]])) for value in (0, 1)])
    assert both.mask.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert both[1].mask.tolist() == [[1, 1, 0]]
    moved = both.to("cpu", torch.float64)
    assert (moved.context.dtype, moved.mask.dtype) == (torch.float64, torch.int64)
    assert Conditions(both.context).of_tokens.tolist() == [[1, 1, 1]] * 2


def test_recordings_are_of_the_tokens_that_attention_sees(graph):
    (site,) = graph.sites.where(layer=LAYER, role="value")
    concept = ns.Concept("none", [LONG, SHORT], ["a blue star", "a ring"])
    conditions = graph.text.conditions([LONG, SHORT])
    with torch.no_grad():
        values = graph.module(site)(graph.denoiser.caption_projection(conditions.context))
    counts = conditions.mask.sum(dim=1)
    expected = {
        "all": torch.stack([each[:count].mean(dim=0) for each, count in zip(values, counts, strict=True)]).mean(dim=0),
        "last": torch.stack([each[count - 1] for each, count in zip(values, counts, strict=True)]).mean(dim=0),
    }
    expected["eos"] = expected["last"]
    for token, mean in expected.items():
        recording = ns.record(graph, concept, [site], token, quiet=True)
        torch.testing.assert_close(recording.mean("present")[site.path], mean, check_dtype=False)


def test_edits_take_the_tokens_that_attention_sees_and_leave_the_biases(graph):
    concept = ns.Concept("plain", [LONG, tiny.PROMPT], [LONG.replace("plain", "stipple"), tiny.PROMPT.replace("plain", "stipple")])
    edit = ns.edit(graph, concept, ns.LocoEdit(tokens="all", preserve=(SHORT,)), LAYER)
    masks = graph.text.conditions([*concept.present, SHORT]).mask
    assert (edit.report.keys, edit.report.kept) == (int(masks[:2].sum()), int(masks[2].sum()))
    attention = graph.denoiser.transformer_blocks[LAYER].attn2
    before = [(each.weight.clone(), each.bias.clone()) for each in (attention.to_k, attention.to_v)]
    with graph.apply(edit):
        applied = tiny.draw(graph.pipe, LONG)
    with ns.fold(graph, edit):
        torch.testing.assert_close(tiny.draw(graph.pipe, LONG), applied, rtol=1e-6, atol=1e-6)
        for each, (weight, bias) in zip((attention.to_k, attention.to_v), before, strict=True):
            assert torch.equal(each.bias, bias)
            assert not torch.equal(each.weight, weight)
    with pytest.raises(ns.InvalidInput, match="attention sees no padding token of the prompts of 'plain'; edit other tokens"):
        ns.edit(graph, concept, ns.LocoEdit(tokens="padding"), LAYER)
