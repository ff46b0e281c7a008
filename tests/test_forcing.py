"""Forced calls give what a plain batch gives, and cost what they run."""

import itertools

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neuroscope import ContextSwap, HookGraph, Neurons
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing, record_steps
from neuroscope.pipeline.discovery import stage_shares
from tests.families import tiny
from tests.numerics import close

TEXT = ("key", "value", "pooled")


@pytest.fixture(scope="module", params=["sd1", "sdxl", "if-1", "if-2"])
def graph(request) -> HookGraph:
    return HookGraph(tiny.PIPELINES[request.param]())


@pytest.fixture(scope="module")
def frame(graph) -> StepInput:
    with record_steps(graph) as frames:
        tiny.draw(graph.pipe)
    return frames[-1][0]


def swap(graph: HookGraph, **where) -> ContextSwap:
    return ContextSwap.of(graph, graph.sites.where(**where), tiny.OTHER, rows="all")


def plain(graph: HookGraph, frame: StepInput, changes) -> torch.Tensor:
    """The same changes in one ordinary batch of the denoiser."""

    def repeated(value):
        if isinstance(value, dict):
            return {name: repeated(each) for name, each in value.items()}
        return torch.cat([value] * len(changes)) if isinstance(value, torch.Tensor) and value.ndim else value

    with torch.no_grad(), graph.apply_each(changes):
        return noise(graph, graph.denoiser(**repeated(dict(frame.inputs)))[0])


def noise(graph: HookGraph, predicted: torch.Tensor) -> torch.Tensor:
    """Without the three channels of variance that DeepFloyd's denoiser predicts beside its three of noise."""
    return predicted[:, :3] if graph.denoiser.config.out_channels == 6 else predicted


class TestEveryFamily:
    def test_rows_that_begin_midway_are_what_a_plain_batch_makes(self, graph, frame):
        """In an order that is not the network's: single layers, several, all with the pooled text, and none."""
        last, middle = graph.sites.layers[-1], graph.sites.layers[len(graph.sites.layers) // 2]
        chosen = [{"layer": last}, {"layer": 0}, {"layer": (middle, last), "role": "value"}, {"role": TEXT}, {"layer": middle}]
        changes = [[swap(graph, **({"text_only": True} | each if "role" not in each else each))] for each in chosen]
        changes.insert(2, [])
        forced = TeacherForcing(graph).predict(frame, changes)
        close(forced, plain(graph, frame, changes))
        close(forced[2:3], frame.output)
        assert min(float((one - other).abs().max()) for one, other in itertools.combinations(forced, 2)) > 1e-6

    def test_frames_hold_the_rows_that_carry_the_prompt(self, graph):
        """Called again with what they hold, the denoiser predicts what it predicted for them; without guidance likewise."""
        for scale in (4.0, 1.0):
            with record_steps(graph) as frames:
                tiny.draw(graph.pipe, [tiny.PROMPT, tiny.OTHER], guidance_scale=scale)
            assert [[frame.step for frame in each] for each in frames] == [[0, 0], [1, 1]]
            for frame in itertools.chain(*frames):
                with torch.no_grad():
                    again = noise(graph, graph.denoiser(**frame.inputs)[0])
                close(again, frame.output)
            own, other = ([each[row].output for each in frames] for row in (0, 1))
            assert not torch.allclose(own[0], other[0], atol=1e-4)

    def test_steps_of_several_images_share_a_call_and_give_what_they_give_alone(self, graph):
        """At one step of two images one call; at another step of the run, or with fewer rows allowed, calls of their own."""
        with record_steps(graph) as frames:
            tiny.draw(graph.pipe, [tiny.PROMPT, tiny.OTHER])
        steps = [frames[0][0], frames[1][0], frames[0][1]]
        last = graph.sites.layers[-1]
        changes = [[[swap(graph, layer=last, text_only=True)], []], [[swap(graph, role=TEXT)]], [[swap(graph, role=TEXT)], []]]
        alone = TeacherForcing(graph)
        expected = [alone.predict(step, each) for step, each in zip(steps, changes, strict=True)]
        for batch_size, count in ((6, 2), (5, 3)):
            forcing = TeacherForcing(graph, batch_size)
            with tiny.counted(graph.denoiser) as calls:
                found = forcing.predict_each(steps, changes)
            assert len(calls) == count
            assert forcing.nfe == pytest.approx(alone.nfe)
            for mine, theirs in zip(found, expected, strict=True):
                close(mine, theirs)

    def test_a_midway_row_counts_the_share_of_operations_that_follow(self, graph, frame):
        """Counted here for real, with torch's own counter, around the stages of the live denoiser."""
        last = graph.sites.layers[-1]
        forcing = TeacherForcing(graph)
        with tiny.counted(graph.denoiser) as calls:
            forcing.predict(frame, [[swap(graph, layer=last, text_only=True)]])
        assert calls == [1]
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            graph.denoiser(**frame.inputs)
        counts = {name.partition(".")[2]: sum(each.values()) for name, each in counter.get_flop_counts().items()}
        stages = list(stage_shares(graph.family, graph.denoiser, frame.inputs))
        stage = next(path for path in stages if graph.sites.where(layer=last)[0].module.startswith(path + "."))
        before = sum(counts.get(path, 0) for path in stages[: stages.index(stage)])
        assert forcing.nfe == pytest.approx(1 - before / counter.get_total_flops(), rel=0.005)
        assert forcing.nfe < 0.6

    def test_shares_fall_from_stage_to_stage(self, graph, frame):
        shares = list(stage_shares(graph.family, graph.denoiser, frame.inputs).values())
        assert shares[0] == 1
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] > 0


class TestFollowing:
    @pytest.fixture(scope="class")
    def graph(self) -> HookGraph:
        return HookGraph(tiny.sd1())

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            (1, [3]),
            (2, [1, 4]),
            (3, [1, 3, 5]),
            (6, [0, 1, 2, 3, 4, 5]),
            (9, list(range(6))),
            ([0, 5], [0, 5]),
            ((0.0, 0.35, 0.99), [0, 2, 5]),
        ],
    )
    def test_steps_lie_in_the_middle_of_equal_parts(self, graph, steps, expected):
        with record_steps(graph, steps) as frames:
            tiny.draw(graph.pipe, num_inference_steps=6)
        assert [each[0].step for each in frames] == expected
        assert {each[0].steps for each in frames} == {6}

    def test_of_a_step_with_two_calls_the_first_is_kept(self, graph):
        scheduler = HeunDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        pipe = tiny.with_parts(graph.pipe, scheduler=scheduler)
        with tiny.counted(pipe.unet) as calls, record_steps(HookGraph(pipe)) as frames:
            tiny.draw(pipe, num_inference_steps=4)
        assert len(calls) == 7
        assert [each[0].step for each in frames] == [0, 1, 2, 3]

    def test_a_cut_run_ends_with_its_last_frame(self, graph):
        with record_steps(graph, (1, 2)) as expected:
            whole = tiny.draw(graph.pipe, num_inference_steps=6)
        made = None
        with tiny.counted(graph.denoiser) as calls, record_steps(graph, (1, 2), stop_after=True) as frames:
            made = tiny.draw(graph.pipe, num_inference_steps=6)
        assert made is None
        assert len(calls) == 3
        for mine, theirs in zip(itertools.chain(*frames), itertools.chain(*expected), strict=True):
            assert mine.step == theirs.step
            assert torch.equal(mine.output, theirs.output)
        assert tiny.hooks(graph.pipe) == []
        assert torch.equal(tiny.draw(graph.pipe, num_inference_steps=6), whole)

    def test_other_errors_are_raised_from_a_run_that_would_be_cut(self, graph):
        with pytest.raises(ZeroDivisionError), record_steps(graph, (1,), stop_after=True):
            1 / 0  # noqa: B018

    def test_nothing_changes_and_no_hook_is_left(self, graph):
        expected = tiny.draw(graph.pipe)
        with record_steps(graph):
            assert torch.equal(tiny.draw(graph.pipe), expected)
        assert tiny.hooks(graph.pipe) == []

    def test_no_hook_is_left_by_a_forced_call_that_fails(self, graph):
        with record_steps(graph) as frames:
            tiny.draw(graph.pipe)

        class Broken(ContextSwap):
            def on_input(self, context, call):
                raise ZeroDivisionError

        site = graph.sites.where(layer=9, role="value")[0]
        broken = Broken([site.path], graph.text.encode([tiny.OTHER]), rows="all")
        with pytest.raises(ZeroDivisionError):
            TeacherForcing(graph).predict(frames[0][0], [[broken]])
        assert tiny.hooks(graph.pipe) == []

    def test_changes_of_outputs_and_of_single_neurons_can_begin_midway(self, graph):
        with record_steps(graph) as frames:
            tiny.draw(graph.pipe)
        sites = graph.sites.where(layer=12, role="value")
        neurons = Neurons.at(graph.sites, {sites[0].path: range(7)})
        changes = [[ContextSwap.of(graph, sites, tiny.OTHER, rows="all", neurons=neurons)], [swap(graph, layer=2, role="key")]]
        forced = TeacherForcing(graph).predict(frames[0][0], changes)
        close(forced, plain(graph, frames[0][0], changes))
