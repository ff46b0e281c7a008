"""Blocks that rewrite the text: another prompt at a block, what it means, and where its text comes from."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuroscope import Concept, ContextSwap, HookGraph, LatentShare, LocoGen, NeuronMask, Neurons, fold, localize, record, testbed
from neuroscope.core.errors import InvalidInput
from neuroscope.generation.metering import metered
from neuroscope.localization.screening.attribution_patching import AttributionPatching
from tests.families import tiny
from tests.families.tiny import OTHER, PROMPT

FAMILIES = tuple(tiny.JOINT)
STEPS = 2
APART = {"true_cfg_scale": 3.0, "negative_prompt": "a green ring"}
OFF = {"guidance_scale": 1.0}
GUIDED: dict[str, dict[str, Any]] = {"sd3": {"guidance_scale": 3.0}, "flux": APART, "chroma": {"guidance_scale": 3.0}, "qwen": APART}
UNGUIDED: dict[str, dict[str, Any]] = {"sd3": OFF, "flux": {}, "chroma": OFF, "qwen": {"true_cfg_scale": 1.0}}
#: Those in which a pooled text is a route of its own.
POOLED = ("sd3", "flux")
LONGER = f"{OTHER}, large"


@cache
def built(family: str) -> HookGraph:
    pipe = tiny.JOINT[family]()
    for name, kept in {"num_layers": pipe.transformer.transformer_blocks, "num_single_layers": singles(pipe)}.items():
        del kept[1 : len(kept) - 2]
        if len(kept):
            pipe.transformer.register_to_config(**{name: len(kept)})
    return HookGraph(pipe)


def singles(pipe: Any) -> nn.ModuleList:
    """The blocks that have one set of weights for text and image."""
    return getattr(pipe.transformer, "single_transformer_blocks", nn.ModuleList())


def drawn(graph: HookGraph, *prompts: str, **options: Any) -> Tensor:
    """The final latents of prompts, all from one noise."""
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
    noise = [torch.Generator().manual_seed(0) for _ in prompts]
    size = {"num_inference_steps": STEPS, "height": 32, "width": 32, "output_type": "latent"}
    found: Tensor = graph.pipe(list(prompts), generator=noise, **size | options)[0]
    return found


def swap(graph: HookGraph, layers: Any = None, *roles: str, prompt: str = OTHER, **options: Any) -> ContextSwap:
    sites = graph.sites.where(role=roles or ("key", "value"), layer=layers)
    return ContextSwap.of(graph, sites, prompt, **options)


def moved(graph: HookGraph, *changes: Any, **options: Any) -> Tensor:
    with graph.apply(*changes):
        return drawn(graph, PROMPT, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_all_blocks_and_the_pooled_text_swapped_are_the_other_prompt_and_none_is_the_run(family: str, guided: bool) -> None:
    graph, options = built(family), (GUIDED if guided else UNGUIDED)[family]
    source, target = drawn(graph, PROMPT, **options), drawn(graph, OTHER, **options)
    every = partial(swap, graph, None, "key", "value", "pooled")
    torch.testing.assert_close(moved(graph, every(), **options), target, atol=1e-12, rtol=0)
    torch.testing.assert_close(moved(graph, every(strength=0.0), **options), source, atol=1e-12, rtol=0)
    tokens = moved(graph, swap(graph), **options)
    assert bool((tokens - target).norm() > 1e-3 * (source - target).norm()) is (family in POOLED)


class WrittenOut(nn.Module):
    """Attention of image and text, each with its own weights, written out; the image reads another text than the text does.

    Independent of hooks: it stands in the place of a block's attention, and is told the other text, and which of it counts, by the test.
    """

    def __init__(self, attention: Any, other: Iterator[tuple[Tensor, Tensor | None]], leads: bool) -> None:
        super().__init__()
        self.attention, self.other, self.leads = attention, other, leads

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        bias, rotary = bias_of(options, encoder_hidden_states.shape[1]), options.get("image_rotary_emb")
        own = self._attend(hidden_states, encoder_hidden_states, encoder_hidden_states, bias, rotary)
        other, other_bias = next(self.other)
        if other_bias is not None and other_bias.ndim == 3:  # of which the image's rows count
            other_bias = other_bias[:, -1:]
        mixed = self._attend(hidden_states, encoder_hidden_states, other, other_bias, rotary)
        return mixed[0], own[1]

    def _heads(self, module: str, given: Tensor, norm: str = "") -> Tensor:
        value = getattr(self.attention, module)(given).unflatten(-1, (self.attention.heads, -1))
        normed = getattr(self.attention, norm, None)
        return value if normed is None else normed(value)

    def _attend(self, image: Tensor, text: Tensor, read: Tensor, bias: Tensor | None, rotary: Any) -> tuple[Tensor, Tensor]:
        a = self.attention
        parts = (
            (self._heads("to_q", image, "norm_q"), self._heads("add_q_proj", text, "norm_added_q")),
            (self._heads("to_k", image, "norm_k"), self._heads("add_k_proj", read, "norm_added_k")),
            (self._heads("to_v", image), self._heads("add_v_proj", read)),
        )
        query, key, value = (torch.cat(pair[::-1] if self.leads else pair, dim=1) for pair in parts)
        if rotary is not None:
            query, key = (_turned(each, *rotary) for each in (query, key))
        scores = torch.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1])
        if bias is not None:
            scores = scores + bias[:, None]
        found = torch.einsum("bhqk,bkhc->bqhc", scores.softmax(dim=-1), value).flatten(2)
        count = text.shape[1]
        its, mine = (found[:, :count], found[:, count:]) if self.leads else (found[:, -count:], found[:, :-count])
        return a.to_out[0](mine), its if getattr(a, "context_pre_only", False) else a.to_add_out(its)


def _turned(value: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Turned by cosines and sines of all tokens, or by complex numbers of the image's and of the text's, which stand in front."""
    turns = torch.cat([second, first]) if first.is_complex() else None
    cosine, sine = (first, second) if turns is None else (each.repeat_interleave(2, dim=-1) for each in (turns.real, turns.imag))
    pairs = value.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(3)
    return value * cosine[:, None] + turned * sine[:, None]


def bias_of(options: dict[str, Any], tokens: int) -> Tensor | None:
    """What an attention adds to its scores, [row, query or 1, token of text or image]: by Chroma's mask of numbers, or by Qwen-Image's."""
    if (mask := options.get("attention_mask")) is not None:
        return mask[:, 0]
    if (seen := options.get("encoder_hidden_states_mask")) is None:
        return None
    image = int(options["image_rotary_emb"][0].shape[0])
    assert seen.shape[1] == tokens
    return torch.cat([torch.where(seen.bool(), 0.0, -math.inf), torch.zeros(len(seen), image)], dim=1)[:, None]


def texts(attention: nn.Module, run: Callable[[], Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    """What an attention is given of text at each step of a run, and what it adds to its scores."""
    found: list[tuple[Tensor, Tensor | None]] = []

    def keep(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        text = kwargs["encoder_hidden_states"].clone()
        found.append((text, bias_of(kwargs, text.shape[1])))

    handle = attention.register_forward_pre_hook(keep, with_kwargs=True)
    run()
    handle.remove()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edge_is_what_attention_written_out_gives(family: str) -> None:
    graph, options = built(family), UNGUIDED[family]
    blocks, length = graph.pipe.transformer.transformer_blocks, graph.sites.where(layer=0, role="feedforward")
    for layer, block in enumerate(blocks):
        former = block.attn
        with graph.capture(length):  # inside a block all prompts have one length
            read = texts(former, partial(drawn, graph, LONGER, **options))
            try:
                block.attn = WrittenOut(former, iter(read), leads=family != "sd3")
                expected = drawn(graph, PROMPT, **options)
            finally:
                block.attn = former
        with graph.apply_each([[], [swap(graph, layer, prompt=LONGER)]], donors=[None, 0]):
            found = drawn(graph, LONGER, PROMPT, **options)[1:]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)  # FLUX and Qwen-Image turn in float32
        assert (found - drawn(graph, PROMPT, **options)).norm() > 1e-4 * found.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_a_mixed_batch_is_the_row_alone_and_donors_cost_no_row(family: str) -> None:
    graph, options = built(family), GUIDED[family]
    layers = graph.sites.layers
    swaps = [swap(graph, layer) for layer in layers]
    with (
        metered(graph.denoiser) as meter,
        graph.apply_each([[], [], *([each] for each in swaps)], donors=[None, None, *[1 for _ in layers]]),
    ):
        together = drawn(graph, PROMPT, OTHER, *[PROMPT for _ in layers], **options)
    assert meter.cost.nfe == 2 * STEPS * (2 + len(layers))
    for number, each in enumerate(swaps):
        with graph.apply_each([[], [each]], donors=[None, 0]):
            alone = drawn(graph, OTHER, PROMPT, **options)[1]
        torch.testing.assert_close(together[2 + number], alone, atol=1e-10, rtol=0)
    with metered(graph.denoiser) as meter:
        moved(graph, swaps[1], **UNGUIDED[family])
    assert meter.cost.nfe == 2 * STEPS  # an added row reads the other prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_edge_and_stream_differ_where_later_blocks_read_the_text_and_agree_at_the_last(family: str) -> None:
    graph, options = built(family), UNGUIDED[family]
    edge, stream = (partial(swap, graph, definition=name) for name in ("edge", "stream"))
    first = moved(graph, edge(0), **options) - moved(graph, stream(0), **options)
    assert first.norm() > 1e-5
    last = graph.sites.layers[-1]
    torch.testing.assert_close(moved(graph, edge(last), **options), moved(graph, stream(last), **options), atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_of_another_layer_composes_with_a_swap(family: str) -> None:
    graph, options = built(family), UNGUIDED[family]
    mask = NeuronMask(Neurons.at(graph.sites, {graph.sites.where(layer=1, role="value")[0].path: range(8)}), fill=1.0)
    with graph.apply(mask):
        one = moved(graph, swap(graph, 0), **options)
    both = moved(graph, mask, swap(graph, 0), **options)
    torch.testing.assert_close(one, both, atol=1e-12, rtol=0)
    assert (both - moved(graph, swap(graph, 0), **options)).norm() > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_of_values_is_zeroed_rows(family: str) -> None:
    graph, options = built(family), UNGUIDED[family]
    (site,) = graph.sites.where(layer=1, role="value")
    mask = NeuronMask(Neurons.at(graph.sites, {site.path: range(12)}), rows="all")
    found = moved(graph, mask, **options)
    with fold(graph, mask):
        torch.testing.assert_close(drawn(graph, PROMPT, **options), found, atol=1e-12, rtol=0)


def test_a_layer_of_one_width_for_both_changes_the_text_alone_and_cannot_be_folded() -> None:
    graph = built("flux")
    site = graph.sites.where(role="value", block="single.*")[-1]
    mask = NeuronMask(Neurons.at(graph.sites, {site.path: range(site.width)}), rows="all")
    seen: list[Tensor] = []
    with graph.apply(mask):
        handle = graph.module(site).register_forward_hook(lambda _m, _a, output: seen.append(output))
        drawn(graph, PROMPT)
        handle.remove()
    text = graph.text.token_count
    assert not seen[0][:, :text].any()
    assert seen[0][:, text:].all()
    with pytest.raises(InvalidInput, match="reads the image by the same weights, which cannot hold a change of the text; apply it instead"):
        fold(graph, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_recorded_in_a_run_and_the_pooled_text_without_one(family: str) -> None:
    graph = built(family)
    concept = Concept("stipple", [PROMPT, f"{PROMPT}, large"], [OTHER, f"{OTHER}, large"])
    if family in POOLED:
        with metered(graph.denoiser) as meter:
            record(graph, concept, sites=graph.sites.where(role="pooled"))
        assert not meter.cost.nfe
    (site,) = graph.sites.where(layer=1, role="value")
    with graph.capture([site]) as kept:
        drawn(graph, PROMPT, **UNGUIDED[family])
    assert kept[site.path][0].shape == (1, graph.text.token_count, site.width)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_share_one_run_of_the_other_prompt(family: str) -> None:
    graph = built(family)
    concept = Concept("stipple", [PROMPT], [OTHER])
    run = partial(localize, graph, concept, metric=LatentShare(), seeds=(0,), quiet=True, num_inference_steps=STEPS, height=32, width=32)
    every = run(LocoGen(), **UNGUIDED[family])
    layers = graph.sites.layers
    assert every.cost.nfe == STEPS * (len(layers) + 2 + (family in POOLED))  # source, target, the pooled text alone
    halved = run(LocoGen(), batch_size=4, **UNGUIDED[family])
    torch.testing.assert_close(halved.scores, every.scores, atol=1e-9, rtol=0)
    source, target = (drawn(graph, each, **UNGUIDED[family]).flatten() for each in (PROMPT, OTHER))
    for layer in layers:
        with graph.apply_each([[], [swap(graph, layer)]], donors=[None, 0]):
            patched = drawn(graph, OTHER, PROMPT, **UNGUIDED[family])[1].flatten()
        share = (patched - source) @ (target - source) / (target - source).square().sum()
        assert math.isclose(float(every.scores[layer]), float(share), abs_tol=1e-7)


def test_skipped_layers_are_no_silent_sites() -> None:
    graph = built("sd3")
    given = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -0.1, "skip_layer_guidance_stop": 1.0, "guidance_scale": 3.0}
    with graph.apply(swap(graph, None, "key", "value", "pooled")):
        found = drawn(graph, PROMPT, **given)
    torch.testing.assert_close(found, drawn(graph, OTHER, **given), atol=1e-12, rtol=0)


def test_a_word_of_a_prompt_that_two_tokenizers_read_has_a_place_among_the_tokens_of_each() -> None:
    graph = built("sd3")
    tokenizer, other = graph.pipe.tokenizer, graph.pipe.tokenizer_3
    (chosen,) = graph.text.select_tokens([PROMPT], "subject", "circle")
    words = PROMPT.partition("circle")[0] + "circle"
    first, second = len(tokenizer([words])["input_ids"][0]) - 2, len(other([words])["input_ids"][0]) - 2
    assert chosen.nonzero()[0].tolist() == [first, tokenizer.model_max_length + second]
    (kinds,) = graph.text.kinds_of_tokens([PROMPT], "circle")
    assert kinds[chosen].tolist() == ["last subject"] * 2
    assert (kinds == "eos").sum() == 2
    assert graph.text.select_tokens([PROMPT], "last")[0].nonzero()[0].tolist() == [graph.text.token_count - 1]
    ((one, another),) = graph.text.align([(PROMPT, OTHER)], "circle", ["subject"])[:1]
    assert [place for place, _ in (one, another)] == chosen.nonzero()[0].tolist()


@pytest.mark.parametrize("definition", ["edge", "stream"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("family", ["chroma", "qwen"])
def test_prompts_of_several_lengths_are_read_under_their_own_masks(family: str, guided: bool, definition: str) -> None:
    graph, options = built(family), (GUIDED if guided else UNGUIDED)[family]
    short, long = "a red ring", f"{OTHER}, large"
    for prompt, other in ((short, long), (long, short)):
        for rows in ("conditional",) if guided else ("conditional", "all"):
            every = swap(graph, prompt=other, definition=definition, rows=rows)
            with graph.apply(every):
                found = drawn(graph, prompt, **options)
            torch.testing.assert_close(found, drawn(graph, other, **options), atol=1e-12, rtol=0)
        for layer in graph.sites.layers[1::3]:
            with graph.apply(swap(graph, layer, prompt=other, definition=definition)):
                added = drawn(graph, prompt, **options)
            with graph.apply_each([[], [swap(graph, layer, prompt=prompt, definition=definition)]]):
                beside = drawn(graph, prompt, prompt, **options)  # another image of the batch reads its own prompt
            torch.testing.assert_close(beside, drawn(graph, prompt, **options).expand_as(beside), atol=1e-12, rtol=0)
            assert (added - beside[0]).norm() > 1e-4 * added.norm()


def test_a_token_that_one_prompt_lacks_counts_in_part_between_the_two() -> None:
    graph = built("qwen")
    short, long = "a red ring", f"{OTHER}, large"
    source, target = (drawn(graph, each) for each in (short, long))
    found = []
    for strength in (0.0, 1e-6, 0.5, 1 - 1e-6, 1.0):
        with graph.apply(swap(graph, prompt=long, strength=strength)):
            found.append(drawn(graph, short))
    torch.testing.assert_close(found[1], source, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[3], target, atol=1e-3, rtol=0)
    assert min((found[2] - end).norm() for end in (source, target)) > 1e-2 * (source - target).norm()


def test_what_is_rescaled_behind_guidance_keeps_the_conditional_norm() -> None:
    """Two calls a step, of which each row's combination has the norm of the conditional one; steps are straight lines of the noise."""
    graph, seen = built("qwen"), []
    with graph.watch(lambda state, _args, _kwargs, output: seen.append((state.layout, output[0]))):
        last = drawn(graph, PROMPT, **GUIDED["qwen"])
    assert [layout.parts for layout, _ in seen] == [("conditional",), ("unconditional",)] * STEPS
    noise = graph.pipe.prepare_latents(1, 4, 32, 32, torch.float64, "cpu", torch.Generator().manual_seed(0))
    sigmas = graph.pipe.scheduler.sigmas
    for step in range(STEPS):
        told, against = seen[2 * step][1], seen[2 * step + 1][1]
        mixed = against + GUIDED["qwen"]["true_cfg_scale"] * (told - against)
        noise = noise + (sigmas[step + 1] - sigmas[step]) * mixed * told.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(last, noise, atol=1e-5, rtol=0)


def test_a_donor_reads_the_change_s_prompt_from_the_same_noise() -> None:
    graph = built("sd3")
    change = swap(graph, 0)
    given = partial(graph.apply_each, [[], [change]], donors=[None, 0])
    with (
        pytest.raises(InvalidInput, match="image 0 .* is to give its text to image 1, and reads another prompt than the change's"),
        given(),
    ):
        drawn(graph, PROMPT, PROMPT)
    with pytest.raises(InvalidInput, match="begins from other noise; give both images generators of one seed"), given():
        tiny.draw(graph.pipe, [OTHER, PROMPT], height=32, width=32)


def test_what_is_not_known_to_be_right_is_refused() -> None:
    graph = built("sd3")
    concept, plain = Concept("a", [PROMPT], [OTHER]), HookGraph(tiny.shallow())
    with pytest.raises(
        InvalidInput, match="AttributionPatching is not known to be right for .*, whose blocks rewrite the text; give ns.Loco"
    ):
        localize(graph, concept, AttributionPatching(), LatentShare(), quiet=True)
    one = graph.apply(swap(graph, 0, "key", definition="stream"))
    with pytest.raises(InvalidInput, match="takes the text of whole layers, keys and values, and layer 0 has its key alone"), one:
        drawn(graph, PROMPT)
    ignored = plain.apply(swap(plain, 0, definition="stream"))
    with pytest.raises(InvalidInput, match='definition="stream" would be ignored: no block of this model rewrites the text'), ignored:
        tiny.draw(plain.pipe)
    with pytest.raises(InvalidInput, match="trajectory='shared' would be ignored"):
        localize(plain, concept, LocoGen(trajectory="shared"), LatentShare(), quiet=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("definition", ["edge", "stream"])
def test_the_first_block_s_text_is_known_without_a_row(family: str, guided: bool, definition: str) -> None:
    graph, options = built(family), (GUIDED if guided else UNGUIDED)[family]
    change = swap(graph, 0, definition=definition)
    other = swap(graph, 0, prompt=f"{OTHER}, large", definition=definition)
    with graph.apply_each([[], [], [change], [other]], donors=[None, None, 0, 1]):
        expected = drawn(graph, OTHER, f"{OTHER}, large", PROMPT, PROMPT, **options)[2:]
    with metered(graph.denoiser) as meter, graph.apply_each([[change], [other]]):
        found = drawn(graph, PROMPT, PROMPT, **options)
    assert meter.cost.nfe == 2 * STEPS * (2 if guided else 1)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    both = ContextSwap.of(graph, graph.sites.where(layer=0, role=("key", "value")), [OTHER, f"{OTHER}, large"], definition=definition)
    with graph.apply(both):
        torch.testing.assert_close(drawn(graph, PROMPT, PROMPT, **options), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", POOLED)
def test_the_first_block_s_text_is_known_beside_hooks_on_the_pooled_text(family: str) -> None:
    graph, options = built(family), UNGUIDED[family]
    change, pooled = swap(graph, 0), swap(graph, None, "pooled", prompt="a green ring")
    with graph.apply_each([[], [change, pooled]], donors=[None, 0]):
        expected = drawn(graph, OTHER, PROMPT, **options)[1:]
    with graph.apply(change, pooled), graph.capture(graph.sites.where(role="pooled")) as kept:
        torch.testing.assert_close(drawn(graph, PROMPT, **options), expected, atol=1e-10, rtol=0)
    (site,) = graph.sites.where(role="pooled")
    assert len(kept[site.path]) == STEPS


def test_the_planted_block_is_found_by_all_windows_and_by_the_search() -> None:
    pipe = testbed.build("sd3", "layer", 0)
    plant, graph = testbed.planted(pipe), HookGraph(pipe)
    assert testbed.verify(pipe).holds
    run = partial(localize, graph, plant.concept, metric=LatentShare(), seeds=(0,), pairs=2, quiet=True, **plant.generation)
    every = run(LocoGen())
    assert every.top(1) == list(plant.layers)
    others = [float(score) for layer, score in zip(every.layers, every.scores, strict=True) if layer not in plant.layers]
    assert max(map(abs, others)) < 1e-3
    assert run(LocoGen(search="auto")).top(1) == list(plant.layers)
