"""Qwen-Image 2.1: what its blocks read of a prompt depends on the prompt alone, and swaps of it against swaps of diffusers' own cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21FlexAttnProcessor, QwenImage21KVCache
from PIL import Image
from torch import Tensor, nn

from neuroscope import (
    Concept,
    ContextSwap,
    HookGraph,
    InvalidInput,
    LatentShare,
    LocoEdit,
    LocoGen,
    NeuronGradient,
    NeuronMask,
    Neurons,
    UnsupportedModel,
    edit,
    export_lora,
    fold,
    localize,
    rank,
    record,
)
from neuroscope.generation.metering import metered
from tests.families import tiny
from tests.families.tiny import OTHER, PROMPT

STEPS = 2
SMALL: dict[str, Any] = {"num_inference_steps": STEPS, "height": 32, "width": 32}
GUIDED: dict[str, Any] = {"true_cfg_scale": 3.0, "negative_prompt": "a green ring"}
LONGER = f"{OTHER}, large"
CONCEPT = Concept("stipple", [PROMPT], [OTHER])


@cache
def built() -> HookGraph:
    pipe = tiny.PREFIX["qwen21"]()
    del pipe.transformer.transformer_blocks[1:10]
    pipe.transformer.register_to_config(num_layers=3)
    return HookGraph(pipe)


def drawn(*prompts: str, **options: Any) -> Tensor:
    """The final latents of prompts, all from one noise."""
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
    noise = [torch.Generator().manual_seed(0) for _ in prompts]
    found: Tensor = built().pipe(list(prompts), generator=noise, output_type="latent", **SMALL | options)[0]
    return found


def swap(layer: Any = None, prompt: str = OTHER, **options: Any) -> ContextSwap:
    graph = built()
    return ContextSwap.of(graph, graph.sites.where(layer=layer, role=("key", "value")), prompt, **options)


def moved(*changes: Any, prompt: str = PROMPT, **options: Any) -> Tensor:
    with built().apply(*changes):
        return drawn(prompt, **options)


@pytest.mark.parametrize("options", [{}, GUIDED, {"use_kv_cache": False}], ids=["unguided", "guided", "without cache"])
@pytest.mark.parametrize("definition", ["edge", "stream"])
def test_all_blocks_swapped_are_the_other_prompt_and_none_is_the_run(definition: str, options: dict[str, Any]) -> None:
    source, target = drawn(PROMPT, **options), drawn(OTHER, **options)
    torch.testing.assert_close(moved(swap(definition=definition), **options), target, atol=1e-7, rtol=0)  # places turn in float32
    torch.testing.assert_close(moved(swap(definition=definition, strength=0.0), **options), source, atol=1e-12, rtol=0)
    assert (source - target).norm() > 0.01 * source.norm()


def test_a_block_is_the_prompts_wherever_and_whenever_the_text_is_read() -> None:
    graph = built()
    with graph.capture() as kept:
        tiny.draw(graph.pipe, num_inference_steps=STEPS)
        tiny.draw(graph.pipe, seed=7, num_inference_steps=STEPS, use_kv_cache=False)
    alone = graph.text.conditions([PROMPT])
    for site in graph.sites:
        text = kept[site.path]
        assert len(text) == 2 * STEPS
        assert all(torch.equal(each, text[0]) for each in text[1:])
        with torch.no_grad():
            torch.testing.assert_close(text[0], graph.module(site)(graph.text.read(site, alone)), atol=1e-7, rtol=0)


@contextmanager
def decoding(prefix: QwenImage21KVCache) -> Iterator[None]:
    """Every call of the transformer reads the text from this cache of diffusers, and computes the image's tokens alone."""

    def give(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"kv_cache": prefix, "kv_cache_mode": "cached"}

    handle = built().denoiser.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def prefix_of(prompt: str) -> QwenImage21KVCache:
    """The keys and values that diffusers keeps of a prompt in the first step of a run."""
    kept: list[QwenImage21KVCache] = []

    def keep(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(kwargs["kv_cache"])

    handle = built().denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    drawn(prompt)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_block_s_edge_is_a_swap_of_that_block_of_diffusers_cache(layer: int) -> None:
    own, other = prefix_of(PROMPT), prefix_of(OTHER)
    with decoding(own):
        torch.testing.assert_close(drawn(PROMPT), drawn(PROMPT), atol=0, rtol=0)
    own.layer_caches[layer] = other.layer_caches[layer]
    with decoding(own):
        expected = drawn(PROMPT)
    found = moved(swap(layer))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    assert (found - drawn(PROMPT)).norm() > 1e-4 * found.norm()
    if layer < 2:  # later blocks read a text that has changed
        assert (moved(swap(layer, definition="stream")) - found).norm() > 1e-6


def test_swaps_cost_no_row_and_rows_of_a_batch_are_each_alone() -> None:
    graph = built()
    swaps = [swap(layer) for layer in graph.sites.layers]
    with metered(graph.denoiser) as meter, graph.apply_each([[], *([each] for each in swaps)]):
        together = drawn(*[PROMPT] * 4, **GUIDED)
    assert meter.cost.nfe == 2 * STEPS * 4
    for number, each in enumerate(swaps):
        torch.testing.assert_close(together[1 + number : 2 + number], moved(each, **GUIDED), atol=1e-7, rtol=0)


def test_windows_are_scored_by_their_shares() -> None:
    graph = built()
    run = partial(localize, graph, CONCEPT, LocoGen(), LatentShare(), seeds=(0,), quiet=True, **SMALL)
    found = run()
    assert found.cost.nfe == STEPS * (3 + 2)  # source and target
    torch.testing.assert_close(run(batch_size=2).scores, found.scores, atol=1e-6, rtol=0)
    source, target = drawn(PROMPT).flatten(), drawn(OTHER).flatten()
    for layer, score in zip(found.layers, found.scores, strict=True):
        share = (moved(swap(layer)).flatten() - source) @ (target - source) / (target - source).square().sum()
        assert float(score) == pytest.approx(float(share), abs=1e-6)


def test_keys_and_values_are_recorded_without_a_run_and_ranked_with_gradients() -> None:
    graph, concept = built(), Concept("stipple", [PROMPT, LONGER], [OTHER, f"{PROMPT}, large"])
    with metered(graph.denoiser) as meter:
        recording = record(graph, concept, quiet=True)
    assert not meter.cost.nfe
    assert set(recording.sites.paths) == set(graph.sites.paths)
    scores = rank(graph, CONCEPT, NeuronGradient(samples=2), quiet=True, **SMALL)
    assert set(scores.scores) == set(graph.sites.paths)


def test_an_edit_in_closed_form_needs_no_run_and_is_the_swap_where_no_block_follows() -> None:
    graph, other = built(), PROMPT.replace("plain", "stipple")
    with metered(graph.denoiser) as meter:
        change = edit(graph, Concept("plain", [PROMPT], [other]), LocoEdit(tokens="all", ridge=1e-9), [2])
    assert not meter.cost.nfe
    expected, source = moved(swap(2, prompt=other)), drawn(PROMPT)
    assert (moved(change) - expected).norm() < 1e-4 * (source - expected).norm()


def test_a_mask_changes_the_text_alone_and_shared_weights_are_not_written(tmp_path: Any) -> None:
    graph = built()
    (site,) = graph.sites.where(layer=1, role="value")
    mask = NeuronMask(Neurons.at(graph.sites, {site.path: range(site.width)}), rows="all")
    seen: list[Tensor] = []
    with graph.apply(mask):
        handle = graph.module(site).register_forward_hook(lambda _m, _a, output: seen.append(output))
        drawn(PROMPT)
        handle.remove()
    text = graph.text.token_count
    assert len(seen) == STEPS
    assert not seen[0][:, :text].any()
    assert seen[0][:, text:].all()
    for write in (partial(fold, graph, mask), partial(export_lora, graph, mask, tmp_path)):
        with pytest.raises(InvalidInput, match="reads the image by the same weights, which cannot hold a change of the text; apply it"):
            write()


def test_prompts_of_a_batch_are_padded_as_the_pipeline_pads_them() -> None:
    graph = built()
    expected = drawn(PROMPT, LONGER)
    with graph.capture():
        torch.testing.assert_close(drawn(PROMPT, LONGER), expected, atol=1e-12, rtol=0)
    conditions = graph.text.conditions([PROMPT, LONGER])
    given = graph.text.arguments(conditions, graph.text.negative())
    assert given["prompt_embeds"].shape[1] == int(conditions.of_tokens.sum(1).max()) < graph.text.token_count
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    made = graph.pipe(**given, generator=noise, output_type="latent", **SMALL)[0]
    torch.testing.assert_close(made, expected, atol=1e-12, rtol=0)


def test_a_prompt_of_another_length_would_move_the_image_and_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the swap's prompt has 23 tokens and this run's 16; the image stands behind its prompt"):
        moved(swap(prompt=LONGER))
    with pytest.raises(InvalidInput, match="has 16 tokens and this run's 23; .*: give prompts of as many tokens"):
        moved(swap(), prompt=LONGER)


def test_what_is_read_wrongly_is_refused() -> None:
    graph = built()
    with pytest.raises(InvalidInput, match=r"the prompt has \d+ tokens, and at most 24 are read here; give a shorter one"), graph.capture():
        drawn("a red circle " * 8)
    with pytest.raises(InvalidInput, match="encoded with an image, which stands among its tokens; leave out image="), graph.capture():
        graph.pipe(PROMPT, image=Image.new("RGB", (32, 32)), output_resolution=32, **SMALL)
    pipe = tiny.PREFIX["qwen21"]()
    pipe.transformer.transformer_blocks[0].attn.set_processor(QwenImage21FlexAttnProcessor())
    with pytest.raises(UnsupportedModel, match="are those of flex attention, whose masks fit one batch"):
        HookGraph(pipe)
