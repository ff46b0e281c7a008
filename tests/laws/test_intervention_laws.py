"""What every intervention must satisfy. A new kind needs one line in EXAMPLES."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from neuroscope import (
    ContextMap,
    ContextSwap,
    HookGraph,
    Intervention,
    NeuronMask,
    Neurons,
    NeuroscopeError,
    SiteNeverRan,
    UnknownSite,
    load,
    save,
)
from tests.families import tiny
from tests.forging import forge
from tests.laws.members import members

STEPS = 4


@dataclass(frozen=True)
class Example:
    """An intervention that is plain to see, and the same one so weak that it must change nothing.

    Each acts on values alone, has options `rows` and `steps`, and can be made for any sites.
    """

    strong: Callable[[HookGraph, list[str]], Intervention]
    idle: Callable[[HookGraph, list[str]], Intervention]


def mask(graph: HookGraph, paths: list[str], strength: float = 1.0) -> NeuronMask:
    return NeuronMask(Neurons.at(graph.sites, {path: range(1, 32, 2) for path in paths}), fill=2.0, strength=strength)


def swap(graph: HookGraph, paths: list[str], neurons: Neurons | None = None) -> ContextSwap:
    return ContextSwap(paths, graph.text.encode([tiny.OTHER]), neurons)


def map_context(graph: HookGraph, paths: list[str], strength: float = 1.0) -> ContextMap:
    rng = torch.Generator().manual_seed(0)
    factors = (0.3 * torch.randn(3, graph.module(graph.sites.at(paths)[0]).in_features, generator=rng) for _ in range(2))
    return ContextMap(paths, *factors, strength=strength, rows="conditional")


EXAMPLES: dict[type[Intervention], Example] = {
    ContextMap: Example(map_context, lambda graph, paths: map_context(graph, paths, strength=0.0)),
    ContextSwap: Example(swap, lambda graph, paths: swap(graph, paths, Neurons({}, {}))),
    NeuronMask: Example(mask, lambda graph, paths: mask(graph, paths, strength=0.0)),
}


def test_every_kind_has_an_example():
    assert members(Intervention) == sorted(EXAMPLES, key=lambda each: each.__name__)


@pytest.fixture(params=EXAMPLES, ids=lambda kind: kind.__name__)
def example(request) -> Example:
    return EXAMPLES[request.param]


@pytest.fixture
def paths(graph) -> list[str]:
    return list(graph.sites.where(layer=[2, 8, 13], role="value").paths)


@pytest.fixture
def strong(example, graph, paths) -> Intervention:
    return example.strong(graph, paths)


@pytest.fixture(scope="module")
def before(graph, pipe) -> dict[str, torch.Tensor]:
    """The untouched run's values, for each path [call, row, token, neuron]."""
    return values_of(graph, pipe)


def values_of(graph, pipe, **options) -> dict[str, torch.Tensor]:
    with graph.capture(graph.sites.where(role="value")) as captured:
        tiny.draw(pipe, **({"num_inference_steps": STEPS} | options))
    return {path: captured[path] for path in captured.sites.paths}


class TestChange:
    def test_at_no_strength_it_changes_no_bit(self, example, graph, pipe, paths, untouched):
        with graph.apply(example.idle(graph, paths)):
            assert torch.equal(tiny.draw(pipe), untouched)

    def test_at_full_strength_it_is_plain_to_see(self, strong, graph, pipe, untouched):
        with graph.apply(strong):
            assert (tiny.draw(pipe) - untouched).norm() > 0.01 * untouched.norm()

    def test_it_changes_its_own_sites_alone(self, strong, graph, pipe, paths, before):
        with graph.apply(strong):
            after = values_of(graph, pipe)
        assert {path for path in before if not torch.equal(after[path], before[path])} == set(paths)

    def test_it_never_changes_a_tensor_in_place(self, strong, graph, pipe, paths):
        seen = []
        handle = graph.module(graph.sites.at(paths)[0]).register_forward_hook(lambda _module, _args, out: seen.append((out, out.clone())))
        try:
            with graph.apply(strong):
                tiny.draw(pipe)
        finally:
            handle.remove()
        assert all(torch.equal(output, copy) for output, copy in seen)


class TestRestoring:
    def test_after_the_block_the_model_is_as_it_was(self, strong, graph, pipe, untouched):
        weights = {name: each.clone() for name, each in pipe.unet.state_dict().items()}
        with graph.apply(strong):
            tiny.draw(pipe)
        assert tiny.hooks(pipe) == []
        assert torch.equal(tiny.draw(pipe), untouched)
        assert all(torch.equal(each, weights[name]) for name, each in pipe.unet.state_dict().items())

    def test_after_an_exception_in_mid_generation_too(self, strong, graph, pipe, untouched):
        def fail(_pipe, step, _timestep, tensors):
            if step == 1:
                raise RuntimeError("the power went out")
            return tensors

        with pytest.raises(RuntimeError, match="the power went out"), graph.apply(strong):
            tiny.draw(pipe, num_inference_steps=STEPS, callback_on_step_end=fail)
        assert tiny.hooks(pipe) == []
        assert torch.equal(tiny.draw(pipe), untouched)

    def test_it_can_be_applied_again_with_the_same_result(self, strong, graph, pipe):
        runs = []
        for _ in range(2):
            with graph.apply(strong):
                runs.append(tiny.draw(pipe))
        assert torch.equal(*runs)


def test_saved_and_loaded_it_makes_the_same_picture(strong, graph, pipe, tmp_path):
    again = load(save(replace(strong, rows="all", steps=(0.5, 1.0)), tmp_path / "x.safetensors"))
    assert (again.rows, again.steps, set(again.paths)) == ("all", (0.5, 1.0), set(strong.paths))
    images = []
    for each in (replace(strong, rows="all", steps=(0.5, 1.0)), again):
        with graph.apply(each):
            images.append(tiny.draw(pipe))
    assert torch.equal(*images)


class TestRows:
    """With guidance a batch of one prompt has two rows, the first of them unconditional."""

    @pytest.mark.parametrize(("rows", "changed"), [("conditional", [False, True]), ("all", [True, True])])
    def test_with_guidance_only_the_rows_that_are_meant_change(self, strong, graph, pipe, paths, before, rows, changed):
        with graph.apply(replace(strong, rows=rows)):
            after = values_of(graph, pipe)
        for path in paths:
            assert [not torch.equal(after[path][:, row], before[path][:, row]) for row in (0, 1)] == changed

    @pytest.mark.parametrize("rows", ["conditional", "all"])
    def test_without_guidance_every_row_is_the_prompts(self, strong, graph, pipe, paths, rows):
        plain = values_of(graph, pipe, guidance_scale=1.0)
        with graph.apply(replace(strong, rows=rows)):
            after = values_of(graph, pipe, guidance_scale=1.0)
        for path in paths:
            assert plain[path].shape[1] == 1
            assert not torch.equal(after[path], plain[path])

    def test_the_prompts_row_is_the_same_whatever_happens_to_the_other(self, strong, graph, pipe, paths):
        found = []
        for rows in ("conditional", "all"):
            with graph.apply(replace(strong, rows=rows)):
                found.append(values_of(graph, pipe)[paths[0]][:, 1])
        torch.testing.assert_close(*found)


class TestSteps:
    @pytest.mark.parametrize("part", [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)])
    def test_only_the_steps_inside_the_part_change(self, strong, graph, pipe, paths, before, part):
        with graph.apply(replace(strong, steps=part)):
            after = values_of(graph, pipe)
        inside = [part[0] <= step / STEPS < part[1] for step in range(STEPS)]
        for path in paths:
            assert [not torch.equal(after[path][step], before[path][step]) for step in range(STEPS)] == inside

    def test_two_halves_are_the_whole(self, strong, graph, pipe):
        with graph.apply(strong):
            whole = tiny.draw(pipe, num_inference_steps=STEPS)
        with graph.apply(replace(strong, steps=(0.0, 0.5)), replace(strong, steps=(0.5, 1.0))):
            assert torch.equal(tiny.draw(pipe, num_inference_steps=STEPS), whole)

    def test_a_part_without_any_step_is_an_error(self, strong, graph, pipe):
        with pytest.raises(NeuroscopeError, match="step"), graph.apply(replace(strong, steps=(0.3, 0.4))):
            tiny.draw(pipe, num_inference_steps=2)


class TestComposition:
    def test_two_in_one_block_are_two_blocks_inside_each_other(self, strong, graph, pipe, paths):
        other = mask(graph, paths[:1], strength=0.5)
        with graph.apply(strong, other):
            together = tiny.draw(pipe)
        with graph.apply(strong), graph.apply(other):
            assert torch.equal(tiny.draw(pipe), together)

    def test_on_different_sites_the_order_does_not_matter(self, example, graph, pipe, paths):
        first, second = example.strong(graph, paths[:1]), example.strong(graph, paths[1:])
        images = []
        for order in ((first, second), (second, first)):
            with graph.apply(*order):
                images.append(tiny.draw(pipe))
        with graph.apply(example.strong(graph, paths)):
            images.append(tiny.draw(pipe))
        assert torch.equal(images[0], images[1])
        assert torch.equal(images[0], images[2])


def test_a_site_that_the_model_lacks_is_refused_before_any_picture(strong, graph, pipe, paths, tmp_path):
    path = forge(save(strong, tmp_path / "x.safetensors"), lambda text: text.replace("up_blocks.1", "up_blocks.9"))
    with tiny.counted(pipe.unet) as calls, pytest.raises(UnknownSite, match="up_blocks.9"), graph.apply(load(path)):
        tiny.draw(pipe)
    assert calls == []


def test_a_block_without_a_run_is_an_error(strong, graph):
    with pytest.raises(SiteNeverRan, match="the pipeline did not run inside the block, so 3 hooked sites did nothing"), graph.apply(strong):
        pass


def test_it_cannot_be_changed_once_made(strong):
    with pytest.raises(AttributeError, match="cannot assign"):
        strong.rows = "all"


def test_its_repr_is_one_short_line(strong):
    assert "\n" not in repr(strong)
    assert len(repr(strong)) < 400
