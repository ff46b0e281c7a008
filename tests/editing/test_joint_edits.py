"""Edits where blocks rewrite the text: of the text before all blocks, of the pooled text, and of single blocks by recorded keys."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuroscope import Concept, ContextMap, ContextSwap, HookGraph, LocoEdit, edit, export_lora, fold, load, save, testbed
from neuroscope.core.errors import InvalidInput
from neuroscope.editing import plan_edit
from neuroscope.editing.loco_edit import LEAST_R_SQUARED
from neuroscope.editing.recorded_keys import KeyRuns
from neuroscope.generation.metering import metered
from tests.families.test_joint import FAMILIES, GUIDED, UNGUIDED, built, drawn, moved
from tests.families.tiny import hooks

THINGS = ("a red circle", "a blue star")
CONCEPT = Concept("stipple", [f"{each} in the style of stipple" for each in THINGS], [f"{each} in the style of plain" for each in THINGS])
SMALL = {"num_inference_steps": 2, "height": 32, "width": 32}
SEEDS = (3, 1, 4)
FITTED, HELD_OUT = SEEDS[:2], SEEDS[2:]


def edited(graph: HookGraph, family: str, layers: Any, guided: bool = False, **options: Any) -> ContextMap:
    """An edit of single blocks."""
    given = (GUIDED if guided else UNGUIDED)[family]
    return edit(graph, CONCEPT, LocoEdit(**options), layers, seeds=SEEDS, quiet=True, **SMALL, **given)


def map_of(made: ContextMap, path: str) -> Tensor:
    read, write = made.factors(path)
    return read.double().T @ write.double()


def ridge_by_lstsq(keys: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """The map with which `keys` come nearest to `targets`, by least squares of a system with the ridge as further rows."""
    width = keys.shape[1]
    penalty = ridge * np.square(keys).sum(axis=1).mean()
    matrix = np.concatenate([keys, np.sqrt(penalty) * np.eye(width)])
    found = np.linalg.lstsq(matrix, np.concatenate([targets - keys, np.zeros((width, width))]), rcond=None)[0]
    return np.asarray(found)


def tokens_of(graph: HookGraph) -> list[list[tuple[int, int]]]:
    return graph.text.align(list(zip(CONCEPT.present, CONCEPT.absent, strict=True)), CONCEPT.name, ("subject",))


def read_of(graph: HookGraph, family: str, module: nn.Module, prompt: str, seed: int, places: list[int]) -> list[np.ndarray]:
    """What a module reads at some tokens, step by step, in a run of one prompt, by a plain torch hook."""
    seen: list[np.ndarray] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.extend(args[0][0, places].numpy()))
    graph.pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **SMALL, **UNGUIDED[family])
    handle.remove()
    return seen


def by_hand(graph: HookGraph, family: str, module: nn.Module, seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Keys and targets of a module, gathered one run after the other; equal ones count once."""
    keys, targets = [], []
    for seed in seeds:
        for present, absent, places in zip(CONCEPT.present, CONCEPT.absent, tokens_of(graph), strict=True):
            keys += read_of(graph, family, module, present, seed, [here for here, _ in places])
            targets += read_of(graph, family, module, absent, seed, [there for _, there in places])
    both = np.unique(np.concatenate([np.stack(keys), np.stack(targets)], axis=1).round(12), axis=0)
    return both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_before_all_blocks_is_edited_by_least_squares_of_the_prompts_alone(family):
    graph = built(family)
    with metered(graph.denoiser) as meter:
        made = edit(graph, CONCEPT, LocoEdit(roles="context"), quiet=True)
    assert not meter.cost.nfe
    present, absent = (graph.text.encode(list(each)).double() for each in (CONCEPT.present, CONCEPT.absent))
    rows = [(present[row, here], absent[row, there]) for row, places in enumerate(tokens_of(graph)) for here, there in places]
    keys, targets = (np.stack([each.numpy() for each in side]) for side in zip(*rows, strict=True))
    expected = ridge_by_lstsq(keys, targets, 0.01)
    (path,) = made.paths
    assert path == "transformer.context_embedder"
    np.testing.assert_allclose(map_of(made, path), expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_says_that_all_blocks_are_edited_and_what_becomes_of_the_neighbours(family, tmp_path):
    graph = built(family)
    made = edit(graph, CONCEPT, LocoEdit(roles="context"), quiet=True)
    assert made.report is not None
    assert str(made.report).endswith("; acts on all blocks at once")
    assert made.report.r_squared is None
    assert made.report.neighbours["stipple"] == pytest.approx(made.report.unrelated)
    other = edited(graph, family, 1)
    assert other.report is not None
    assert not other.report.reach
    assert other.report.neighbours["stipple"] > 0
    assert f"R² {other.report.r_squared:.3f} on held-out seeds" in str(other.report)
    for each in (made, other):
        assert load(save(each, tmp_path / "edit.safetensors"), ContextMap).report == each.report


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("roles", ["context", "pooled", ("pooled", "context")])
def test_edits_before_all_blocks_fold_and_load_as_a_lora(family, roles, tmp_path):
    graph, options = built(family), UNGUIDED[family]
    made = edit(graph, CONCEPT, LocoEdit(roles=roles), quiet=True)
    source = drawn(graph, CONCEPT.present[0], **options)
    with graph.apply(made):
        expected = drawn(graph, CONCEPT.present[0], **options)
    assert (expected - source).norm() > 1e-4 * source.norm()
    with fold(graph, made):
        torch.testing.assert_close(drawn(graph, CONCEPT.present[0], **options), expected, atol=1e-12, rtol=0)
    export_lora(graph, made, tmp_path)
    pipe = copy.deepcopy(graph.pipe)
    pipe.load_lora_weights(tmp_path, adapter_name="edit")
    torch.testing.assert_close(drawn(HookGraph(pipe), CONCEPT.present[0], **options), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_one_block_is_least_squares_of_keys_recorded_at_all_steps(family):
    graph = built(family)
    for layer in (0, graph.sites.layers[-1]):
        made = edited(graph, family, layer)
        key, value = graph.sites.where(layer=layer, role=("key", "value"))
        np.testing.assert_array_equal(map_of(made, key.path), map_of(made, value.path))
        module = graph.module(key)
        keys, targets = by_hand(graph, family, module, FITTED)
        expected = ridge_by_lstsq(keys, targets, 0.01)
        np.testing.assert_allclose(map_of(made, key.path), expected, atol=2e-5)
        other, wanted = by_hand(graph, family, module, HELD_OUT)
        left = np.square(other + other @ expected - wanted).sum() / np.square(wanted - other).sum()
        assert made.report is not None
        assert made.report.r_squared == pytest.approx(1 - left, abs=1e-5)
        assert made.report.keys == len(keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_that_record_keys_are_counted_and_leave_no_hook(family):
    graph = built(family)
    with metered(graph.denoiser) as meter:
        edit(graph, CONCEPT, LocoEdit(preserve=("",)), [0, 1], seeds=SEEDS, quiet=True, **SMALL, **UNGUIDED[family])
    prompts = 2 * len(THINGS) * len(SEEDS) + len(FITTED)  # both arms, and what is preserved
    assert meter.cost.nfe == prompts * SMALL["num_inference_steps"]
    plan = plan_edit(graph, CONCEPT, LocoEdit(preserve=("",)), [0, 1], seeds=SEEDS, **SMALL, **UNGUIDED[family])
    assert (plan.images, plan.nfe) == (prompts, meter.cost.nfe)
    assert plan_edit(graph, CONCEPT, LocoEdit(roles="context")).nfe == 0
    assert not [path for path in hooks(graph.pipe) if path.startswith("transformer.")]


@pytest.mark.parametrize("family", FAMILIES)
def test_preserved_prompts_of_runs_move_less(family):
    graph = built(family)
    reports = [edited(graph, family, 1, preserve=("a green ring",), preserve_weight=weight).report for weight in (1e-6, 100.0)]
    free, kept = [each for each in reports if each is not None]
    assert free.kept == kept.kept == len(FITTED) * SMALL["num_inference_steps"] * graph.text.token_count
    assert kept.preserved < 0.1 * free.preserved


@pytest.mark.parametrize("family", FAMILIES)
def test_under_guidance_the_rows_that_carry_the_prompt_are_recorded(family):
    graph = built(family)
    plain, guided = (edited(graph, family, 0, guided=each) for each in (False, True))
    path = plain.paths[0]
    torch.testing.assert_close(map_of(guided, path), map_of(plain, path), atol=2e-5, rtol=0)  # block 0 reads prompt and step alone


def only_reading(layer: int) -> HookGraph:
    """A pipeline in which the image reads the text in one block alone, and no pooled text."""
    pipe = copy.deepcopy(built("sd3").pipe)
    with torch.no_grad():
        pipe.transformer.time_text_embed.text_embedder.linear_1.weight.zero_()
        for number, block in enumerate(pipe.transformer.transformer_blocks):
            if number != layer:
                block.attn.add_k_proj.weight.zero_()
                block.attn.add_v_proj.weight.zero_()
    return HookGraph(pipe)


@pytest.mark.parametrize("layer", [0, 2])
def test_an_edit_of_the_block_that_carries_a_concept_moves_the_image_to_its_destination(layer):
    graph, options = only_reading(layer), UNGUIDED["sd3"]
    source, target = (drawn(graph, each[0], **options) for each in (CONCEPT.present, CONCEPT.absent))

    def left(made: ContextMap) -> float:
        return float((moved_of(graph, made) - target).norm() / (source - target).norm())

    moved_of = partial(_moved, options=options)
    for each in (layer, 1):
        rest = left(edited(graph, "sd3", each, tokens="all", ridge=1e-4))
        assert (rest < 0.1) if each == layer else (abs(rest - 1) < 1e-9)
    assert left(edit(graph, CONCEPT, LocoEdit(roles="context", tokens="all", ridge=1e-4), quiet=True)) < 0.1
    assert abs(left(edit(graph, CONCEPT, LocoEdit(roles="pooled"), quiet=True)) - 1) < 1e-9


def _moved(graph: HookGraph, made: ContextMap, options: dict[str, Any]) -> Tensor:
    with graph.apply(made):
        return drawn(graph, CONCEPT.present[0], **options)


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "roles"), [("layer", "context"), ("pooled", "pooled")])
def test_planted_routes_are_edited_and_others_do_nothing(plant, roles):
    pipe = testbed.build("sd3", plant, 0)
    record, graph = testbed.planted(pipe), HookGraph(pipe)
    run = partial(drawn, graph, **record.generation)
    source, target = run(*record.concept.present), run(*record.concept.absent)

    def left(made: ContextMap) -> float:
        with graph.apply(made):
            return float((run(*record.concept.present) - target).norm() / (source - target).norm())

    other = "pooled" if roles == "context" else "context"
    assert left(edit(graph, record.concept, LocoEdit(roles=roles, tokens="all"), quiet=True)) < 0.2
    assert abs(left(edit(graph, record.concept, LocoEdit(roles=other, tokens="all"), quiet=True)) - 1) < 1e-2
    wrong = next(layer for layer in graph.sites.layers if layer not in record.layers)
    blocks = {
        layer: left(edit(graph, record.concept, LocoEdit(tokens="all"), layer, quiet=True, **record.generation))
        for layer in (*record.layers, wrong)
    }
    assert all(blocks[layer] < 0.2 for layer in record.layers)
    assert abs(blocks[wrong] - 1) < 1e-2


def test_a_map_that_does_not_hold_on_other_seeds_is_refused():
    graph = built("sd3")
    with pytest.raises(
        InvalidInput,
        match=rf"an edit of layer 1 makes R² = 0\.\d\d\d of the way to its targets on held-out seeds \[4\], and {LEAST_R_SQUARED} is the "
        r"least: .* Give more seeds \(there are 3\) or another ridge, .* with LocoEdit\(roles=\"context\"\)",
    ):
        edited(graph, "sd3", 1, ridge=100.0)


def test_where_the_image_moves_the_text_too_much_for_one_map_it_is_refused():
    pipe = copy.deepcopy(built("sd3").pipe)
    with torch.no_grad():
        for block in pipe.transformer.transformer_blocks[:-1]:
            block.attn.to_v.weight.mul_(30)  # what text queries read of the image
            block.attn.to_add_out.weight.mul_(30)
    graph = HookGraph(pipe)
    assert edited(graph, "sd3", 0, tokens="all").report.r_squared > 0.95  # no block has rewritten the text
    with pytest.raises(InvalidInput, match=r"an edit of layer 2 makes R² = 0\.[0-4]\d\d of the way"):
        edited(graph, "sd3", 2, tokens="all")


def test_the_last_quarter_of_the_seeds_is_held_out():
    assert KeyRuns().held_out == (3,)
    assert KeyRuns(seeds=tuple(range(9))).held_out == (7, 8)
    assert KeyRuns(seeds=(5, 2)).fitted == (5,)
    for seeds in ((1,), (1, 1)):
        with pytest.raises(InvalidInput, match=r"leave none to check an edit on .* give two or more, each once"):
            KeyRuns(seeds=seeds)


def test_what_would_be_ignored_or_is_not_there_is_refused(graph, concept):
    joint = built("sd3")
    with pytest.raises(InvalidInput, match="seeds would be ignored: what is edited depends on prompts alone, and nothing is run; leave it"):
        edit(joint, CONCEPT, LocoEdit(roles="context"), seeds=[0, 1])
    with pytest.raises(InvalidInput, match="num_inference_steps would be ignored"):
        edit(graph, concept, LocoEdit(), 8, num_inference_steps=2)
    with pytest.raises(InvalidInput, match=r"layers=\[1\] would be ignored: the text before all blocks, which .* belongs to no layer"):
        edit(joint, CONCEPT, LocoEdit(roles="context"), [1])
    with pytest.raises(InvalidInput, match="keys and values read the text that an edit of the context has moved already; edit the one or"):
        edit(joint, CONCEPT, LocoEdit(roles=("context", "key")), [1])
    with pytest.raises(InvalidInput, match="stable-diffusion-unet has no text that its blocks rewrite, so layers can be edited each for"):
        edit(graph, concept, LocoEdit(roles="context"))
    with pytest.raises(InvalidInput, match="generator is set for each image here; give only options that all images share"):
        edit(joint, CONCEPT, LocoEdit(), 1, generator=None)
    with pytest.raises(InvalidInput, match="takes no steps, so it would be ignored"):
        edit(joint, CONCEPT, LocoEdit(), 1, steps=2)


def test_a_layer_whose_weights_are_the_images_too_is_applied_and_not_folded(tmp_path):
    graph = built("flux")
    made = edited(graph, "flux", graph.sites.layers[-1])
    source = drawn(graph, CONCEPT.present[0])
    assert (moved_by(graph, made) - source).norm() > 1e-6 * source.norm()
    for write in (partial(fold, graph, made), partial(export_lora, graph, made, tmp_path)):
        with pytest.raises(InvalidInput, match="reads the image by the same weights, which cannot hold a change of the text; apply it"):
            write()


def moved_by(graph: HookGraph, made: ContextMap) -> Tensor:
    return _moved(graph, made, {})


def test_a_swap_of_the_text_before_all_blocks_are_of_all_tokens():
    graph = built("sd3")
    sites = graph.sites.where(role=("context", "pooled"))
    other = CONCEPT.absent[0]
    torch.testing.assert_close(moved(graph, ContextSwap.of(graph, sites, other)), drawn(graph, other), atol=1e-12, rtol=0)
