"""AnimateDiff's own: the frames of a video are rows that attend to the text one by one, and hooks see one row a video."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import neuroscope as ns
from neuroscope.core.conditions import BatchLayout
from neuroscope.generation.teacher_forcing import TeacherForcing, record_steps
from neuroscope.testbed import build, planted
from tests.families import tiny
from tests.families.test_pixart import LAYER_METHODS

FRAMES, LAYER = 2, 8
PROMPTS = [tiny.PROMPT, tiny.OTHER]
THIRD = "a red ring and a white cross"


@cache
def model() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["animatediff"]())


@cache
def graph_of(plant: str) -> ns.HookGraph:
    return ns.HookGraph(build("animatediff", plant, 0))


def text_sites() -> ns.Sites:
    return model().sites.where(role=("key", "value"))


def swap(prompt: str, **options: object) -> ns.ContextSwap:
    return ns.ContextSwap.of(model(), text_sites(), prompt, **options)


def draw(prompts: str | list[str] = tiny.PROMPT, **options: object) -> Tensor:
    return tiny.draw(model().pipe, prompts, **options)


def outputs(path: str, run: Callable[[], object]) -> Tensor:
    """What a module gives in a run's first call, by a plain torch hook."""
    seen: list[Tensor] = []
    handle = model().denoiser.get_submodule(path).register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    run()
    handle.remove()
    return seen[0]


def test_motion_modules_are_no_sites_and_no_components():
    named = [path for path, _ in model().denoiser.named_modules() if path.endswith("attn2.to_k")]
    assert sum("motion_modules" in path for path in named) > 16
    assert len(model().sites.layers) == 16
    assert not [each.path for each in (*model().sites, *model().components) if "motion_modules" in each.path]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_all_layers_swapped_is_the_target_video_and_none_is_the_source(scale):
    options = {"guidance_scale": scale} | ({"negative_prompt": "a cross"} if scale > 1 else {})
    own, target = draw(tiny.PROMPT, **options), draw(THIRD, **options)
    with model().apply(swap(THIRD)):
        assert torch.equal(draw(tiny.PROMPT, **options), target)
    with model().apply(swap(THIRD, strength=0.0)):
        assert torch.equal(draw(tiny.PROMPT, **options), own)
    assert own.shape[2] == FRAMES
    assert (own - target).norm() > 0.01 * own.norm()


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("changed", [0, 1])
def test_a_change_of_one_of_two_videos_reaches_all_its_frames_and_none_of_the_others(changed, scale):
    prompts = [*PROMPTS]
    plain, prompts[changed] = draw(PROMPTS, guidance_scale=scale), THIRD
    expected = draw(prompts, guidance_scale=scale)
    changes = [[swap(THIRD)] if video == changed else [] for video in range(2)]
    with model().apply_each(changes):
        made = draw(PROMPTS, guidance_scale=scale)
    assert torch.equal(made, expected)
    assert torch.equal(made[1 - changed], plain[1 - changed])


def test_changes_for_another_number_of_videos_are_refused():
    stated = "changes were given for 4 images, and the pipeline makes 2; give one for each"
    with pytest.raises(ns.InvalidInput, match=stated), model().apply_each([[swap(THIRD)], [], [], []]):
        draw(PROMPTS)


@pytest.mark.parametrize("role", ["value", "heads"])
def test_a_video_is_one_row_of_all_its_frames(role):
    """Of sites of the text, which are alike in all frames, the tokens once; of others the positions of one frame after the other."""
    (site,) = model().sites.where(layer=LAYER, role=role)
    with model().capture([site]) as captured:
        draw(PROMPTS, guidance_scale=4.0)
    path = site.module if role == "value" else site.module.replace("to_out.0", "to_out")
    if role == "value":
        seen = outputs(path, lambda: draw(PROMPTS, guidance_scale=4.0))
    else:
        seen = []
        module = model().module(site)
        handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
        draw(PROMPTS, guidance_scale=4.0)
        handle.remove()
        seen = seen[0]
    videos = seen.unflatten(0, (4, FRAMES))
    assert captured[site.path].shape[1] == 4
    expected = videos[:, 0] if role == "value" else videos.flatten(1, 2)
    assert torch.equal(captured[site.path][0], expected)
    assert torch.equal(captured.select(site.path, rows="conditional")[0], expected[2:])
    assert torch.equal(videos[:, 0], videos[:, 1]) is (role == "value")


@pytest.mark.parametrize("rows", ["conditional", "all"])
def test_a_mask_is_zeroed_in_every_frame(rows):
    (site,) = model().sites.where(layer=LAYER, role="value")
    with model().apply(ns.NeuronMask(ns.Neurons.at(model().sites, {site.path: range(4)}), rows=rows)):
        seen = outputs(site.module, lambda: draw(guidance_scale=4.0))
        masked = outputs(site.module.replace("to_v", "to_out.0"), lambda: draw(guidance_scale=4.0))
    unmasked = outputs(site.module, lambda: draw(guidance_scale=4.0))
    assert not torch.equal(masked, outputs(site.module.replace("to_v", "to_out.0"), lambda: draw(guidance_scale=4.0)))
    module = model().module(site)
    kept = module.weight.data.clone()
    module.weight.data[:4] = 0.0
    try:
        expected = outputs(site.module, lambda: draw(guidance_scale=4.0))
    finally:
        module.weight.data.copy_(kept)
    first = 0 if rows == "all" else FRAMES
    assert torch.equal(seen[first:], expected[first:])
    assert torch.equal(seen[:first], unmasked[:first])


@pytest.mark.parametrize("guided", [False, True])
def test_components_are_rewired_by_videos(guided):
    """Causal tracing copies one video's output to another; all of its frames are copied."""
    component = next(each for each in model().components if each.kind == "ff")
    layouts: list[BatchLayout] = []

    def copy(output: Tensor, layout: BatchLayout) -> Tensor:
        layouts.append(layout)
        assert len(output) == 2 * len(layout.parts)
        first = layout.images(len(output)) * layout.parts.index("conditional")
        changed = output.clone()
        changed[first + 1] = output[first]
        return changed

    path = component.path.partition(".")[2]
    with model().rewire({component.path: copy}):
        seen = outputs(path, lambda: draw(PROMPTS, guidance_scale=4.0 if guided else 1.0, num_inference_steps=1))
    assert layouts == [BatchLayout(("unconditional", "conditional") if guided else ("conditional",))]
    assert torch.equal(seen[-FRAMES:], seen[-2 * FRAMES : -FRAMES])


def test_frames_that_read_several_prompts_are_not_taken_for_one_video():
    (site,) = model().sites.where(layer=LAYER, role="value")
    mask = ns.NeuronMask(ns.Neurons.at(model().sites, {site.path: range(4)}), rows="conditional")

    def travel(_module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        context = kwargs["encoder_hidden_states"]
        return args, kwargs | {"encoder_hidden_states": torch.cat([context[:1], -context[1:]])}

    handle = model().denoiser.register_forward_pre_hook(travel, with_kwargs=True)
    try:
        with pytest.raises(ns.InvalidInput, match="it is not known which rows carry the prompt"), model().apply(mask):
            draw(guidance_scale=1.0)
    finally:
        handle.remove()


def test_free_noise_is_refused():
    pipe = tiny.PIPELINES["animatediff"]()
    pipe.enable_free_noise(context_length=2, context_stride=1)
    with pytest.raises(ns.UnsupportedModel, match="may read prompts of their own; call `pipe.disable_free_noise"):
        ns.HookGraph(pipe)
    pipe.disable_free_noise()
    ns.HookGraph(pipe)


def test_predictions_from_recorded_inputs_are_the_runs_own():
    """Two videos in one call, and a third row that reads another prompt at one layer."""
    with record_steps(model(), 1) as found:
        draw(PROMPTS, guidance_scale=4.0)
    first, step = found[0]
    target = model().text.conditions([THIRD])
    change = ns.ContextSwap.reading(target, model().sites.where(layer=LAYER, role=("key", "value")).paths, rows="all")
    other, predicted = TeacherForcing(model(), 16).predict_each([first, step], [[[]], [[], [change]]])
    torch.testing.assert_close(other[0], first.output[0])
    torch.testing.assert_close(predicted[0], step.output[0])
    with model().apply(change), torch.no_grad():
        alone = model().denoiser(**model().family.spread(step.inputs))[0]
    torch.testing.assert_close(predicted[1], alone[0])
    assert (alone - step.output).norm() > 1e-4 * alone.norm()


def test_recorded_positions_are_those_of_all_frames():
    (site,) = model().sites.where(layer=LAYER, role="output")
    concept = ns.Concept("square", [tiny.PROMPT], [tiny.OTHER])
    small = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 32, "width": 32, "num_frames": FRAMES}
    found = ns.record(model(), concept, [site], quiet=True, **small)
    seen = outputs(site.module, lambda: draw(num_inference_steps=1, guidance_scale=1.0))
    torch.testing.assert_close(torch.as_tensor(found.mean("present")[site.path]).double(), seen.mean(dim=(0, 1)))


@pytest.mark.parametrize("name", LAYER_METHODS)
def test_every_method_finds_the_planted_layer(name):
    graph = graph_of("layer")
    record = planted(graph.pipe)
    given = {"pairs": 2, "keep_images": 0, "quiet": True} | dict(record.generation)
    scores = ns.localize(graph, record.concept, LAYER_METHODS[name], ns.LatentShare(), [0], **given)
    (layer,) = record.layers
    assert layer in scores.best.layers if name in ("windows of three", "sets") else scores.top(1) == [layer]


@pytest.mark.parametrize("method", [ns.NeuronGradient(samples=16), ns.IntegratedGradients(fidelity=0)], ids=["gradient", "integrated"])
def test_every_method_finds_the_planted_neurons(method):
    """By the size of their scores, as some push the videos on and others back; precision at k is 1 for at most 200 NFE."""
    record = planted(graph_of("neurons").pipe)
    ((path, chosen),) = record.neurons.items()
    given = {"pairs": None if isinstance(method, ns.NeuronGradient) else 2, "quiet": True, **record.generation}
    scores = ns.rank(graph_of("neurons"), record.concept, replace(method, roles="value"), layers=record.layers[0], **given)
    table = scores.to_frame().set_index("neuron")
    assert set(table["score"].abs().nlargest(len(chosen)).index) == set(chosen)
    assert set(table["site"]) == {path}
    assert scores.cost.nfe <= 200
