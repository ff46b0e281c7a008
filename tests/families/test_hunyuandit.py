"""HunyuanDiT's own: two encoders whose tokens lie one behind the other, padding that is replaced, and T5 in the time embedding."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import neuroscope as ns
from neuroscope.core.conditions import Conditions
from neuroscope.evaluation import generate
from neuroscope.generation.batches import Row, Sweep
from neuroscope.testbed import build, planted
from tests.families import tiny

SHORT, LONG = "a star", "a red circle and a white square in the style of plain"
SMALL = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 64, "width": 64, "use_resolution_binning": False}


@cache
def model() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["hunyuandit"]())


def drawn_of(conditions: Conditions) -> torch.Tensor:
    given = model().text.arguments(conditions, model().text.negative())
    return model().pipe(**given, generator=torch.Generator().manual_seed(0), output_type="latent", **SMALL)[0]


def test_a_layer_reads_both_encoders_and_a_learned_vector_at_padding():
    """As plain hooks see it in a run."""
    denoiser, seen = model().denoiser, {}
    key = denoiser.blocks[3].attn2.to_k
    handle = key.register_forward_pre_hook(lambda _module, args: seen.update(read=args[0]))
    try:
        tiny.draw(model().pipe, SHORT, guidance_scale=1.0, num_inference_steps=1)
    finally:
        handle.remove()
    conditions = model().text.conditions([SHORT])
    counts = [len(each(SHORT)["input_ids"]) for each in (model().pipe.tokenizer, model().pipe.tokenizer_2)]
    hidden = ~conditions.mask.bool()[0]
    assert conditions.mask[0].tolist() == [1] * counts[0] + [0] * (77 - counts[0]) + [1] * counts[1] + [0] * (256 - counts[1])
    assert torch.equal(seen["read"][0][hidden], denoiser.text_embedding_padding[hidden])
    (site,) = model().sites.where(layer=3, role="key")
    assert torch.equal(model().text.read(site, conditions), seen["read"])


def test_padding_is_attended_and_what_encoders_give_there_is_not_read_by_layers():
    """T5's states at padding reach the pooled text alone, which is not masked."""
    conditions = model().text.conditions([SHORT])
    own = drawn_of(conditions)
    hidden = ~conditions.mask.bool()
    moved = {}
    for name, chosen in (("first", hidden & (torch.arange(333) < 77)), ("second", hidden & (torch.arange(333) >= 77))):
        context = torch.where(chosen[..., None], conditions.context + 1.0, conditions.context)
        moved[name] = drawn_of(replace(conditions, context=context))
    assert torch.equal(moved["first"], own)
    assert not torch.equal(moved["second"], own)
    (pooled,) = model().sites.where(role="pooled")
    with model().apply(ns.ContextSwap.of(model(), [pooled], SHORT)):
        context = torch.where((hidden & (torch.arange(333) >= 77))[..., None], conditions.context + 1.0, conditions.context)
        assert torch.equal(drawn_of(replace(conditions, context=context)), own)
    kept = model().denoiser.text_embedding_padding.data.clone()
    try:
        model().denoiser.text_embedding_padding.data.add_(1.0)
        assert not torch.equal(drawn_of(conditions), own)
    finally:
        model().denoiser.text_embedding_padding.data.copy_(kept)


def test_a_swap_without_a_mask_is_refused():
    conditions = model().text.conditions([LONG])
    layer = model().sites.where(layer=3, role=("key", "value"))
    with pytest.raises(ns.InvalidInput, match="holds no mask, which the attention of its layers reads"):
        ns.ContextSwap(layer.paths, conditions.context).check(model().spec)
    with pytest.raises(ns.InvalidInput, match="holds no mask, which says where padding is replaced"):
        model().text.read(layer[0], Conditions(conditions.context))


def test_words_are_found_in_either_encoder():
    """The last token of the subject; BERT's tokens stand first."""
    chosen = model().text.select_tokens([LONG], "subject", "circle")[0]
    first, second = (
        next(number for number, token in enumerate(each(LONG)["input_ids"]) if "circle" in each.convert_ids_to_tokens(token))
        for each in (model().pipe.tokenizer, model().pipe.tokenizer_2)
    )
    assert np.flatnonzero(chosen).tolist() == [first, 77 + second]
    kinds = model().text.kinds_of_tokens([LONG], "circle")[0]
    assert [number for number, kind in enumerate(kinds) if kind == "last subject"] == [first, 77 + second]
    pairs = model().text.align([(LONG, LONG.replace("circle", "star"))], "circle", ["subject"])
    assert pairs == [[(first, first), (77 + second, 77 + second)]]
    assert model().spec.token_count == 333


def test_lost_words_of_either_encoder_are_named():
    with pytest.warns(UserWarning, match="is longer than the model's 77 tokens; it loses 'star'"):
        model().text.conditions(["a red circle " * 25 + "star"])


def test_prompts_are_encoded_as_the_pipeline_encodes_them():
    prompts = [LONG, SHORT]
    conditions, negative = model().text.conditions(prompts), model().text.negative("a cross")
    with torch.no_grad():
        for number, (begin, end, width) in enumerate(((0, 77, 192), (77, 333, 64))):
            expected = model().pipe.encode_prompt(
                prompts, negative_prompt=["a cross", "a cross"], max_sequence_length=end - begin, text_encoder_index=number
            )
            for found, index in ((conditions, 0), (negative, 1)):
                context = found.context[:, begin:end, :width].expand_as(expected[index])
                assert torch.equal(context, expected[index])
                assert torch.equal(found.mask[:, begin:end].expand_as(expected[index + 2]), expected[index + 2])


@pytest.mark.parametrize("negative", [None, "a cross"])
def test_sweeps_make_the_pipelines_own_runs(negative):
    options = SMALL | {"guidance_scale": 4.0, "negative_prompt": negative}
    ((_, made),) = Sweep(model(), [LONG], options, space="latent").run([Row(LONG, 0)])
    torch.testing.assert_close(made[0][None], tiny.draw(model().pipe, LONG, **options), rtol=1e-9, atol=1e-9)


def test_images_are_the_pipelines_own():
    (made,) = generate(model(), None, [SHORT], [3], **SMALL)
    expected = model().pipe(SHORT, generator=[torch.Generator().manual_seed(3)], **SMALL).images[0]
    assert made.tobytes() == expected.tobytes()
    sweep = Sweep(model(), [SHORT], SMALL, space="latent")
    ((_, latents),) = sweep.run([Row(SHORT, 3)])
    assert sweep.images(latents)[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("options", [{}, {"steps": (0.0, 0.5)}], ids=["whole", "half"])
def test_a_run_that_failed_between_its_encoders_leaves_nothing_behind(options):
    """The next run begins with its own first encoder."""
    pipe = model().pipe
    swap = ns.ContextSwap.of(model(), model().sites.where(role=("key", "value", "pooled")), LONG, **options)
    with model().apply(swap):
        pipe.encode_prompt(SHORT, text_encoder_index=0, max_sequence_length=77)
        found = tiny.draw(pipe, SHORT, guidance_scale=1.0)
    assert torch.equal(found, tiny.draw(pipe, LONG, guidance_scale=1.0)) is not bool(options)


def test_the_pooled_text_and_the_layers_each_carry_a_share():
    """On a pipeline in which the pooled text alone carries the concept, it is all, and no layer has a part."""
    pipe = build("hunyuandit", "pooled", 0)
    graph, record = ns.HookGraph(pipe), planted(pipe)
    options = {"pairs": 1, "keep_images": 0, "quiet": True, **record.generation}
    scores = ns.localize(graph, record.concept, ns.LocoGen(window=12), ns.LatentShare(), [0], **options)
    assert scores.pooled_share[0] == pytest.approx(1.0, abs=1e-2)
    assert abs(scores.scores[0]) < 1e-2


def test_an_edit_says_that_it_reaches_the_vectors_at_padding():
    concept = ns.Concept("stipple", [tiny.PROMPT], [tiny.OTHER])
    with pytest.warns(UserWarning, match="an edit of hunyuan-dit also moves the learned vectors at padding, which attention sees"):
        ns.edit(model(), concept, ns.LocoEdit(), layers=[0])
