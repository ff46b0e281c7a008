"""What happens to blocks that are not entered, to copies that are made inside, in other threads, and what is put back."""

import contextlib
import copy
import gc
import io
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from diffusers import StableDiffusionPipeline

from neuroscope import ContextSwap, HookGraph, Intervention, InvalidInput, Neurons
from tests.families import tiny

METHODS = ("encode_prompt", "maybe_free_model_hooks", "__deepcopy__")


class TestNeverEntered:
    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("apply", lambda graph: graph.apply(tiny.mask(graph))),
            ("apply_each", lambda graph: graph.apply_each([[]])),
            ("capture", lambda graph: graph.capture()),
            ("observe", lambda graph: graph.observe(graph.sites, print)),
        ],
    )
    def test_a_block_that_is_never_entered_warns(self, graph, name, make):
        with pytest.warns(UserWarning, match=rf"{name}\(...\) was never entered, so it did nothing; write `with graph.{name}"):
            make(graph)

    def test_a_block_that_is_entered_does_not_warn(self, graph, pipe):
        with graph.apply(tiny.mask(graph)):
            tiny.draw(pipe)
        gc.collect()

    def test_a_block_decorates_a_function(self, graph, pipe, untouched):
        @graph.apply(tiny.mask(graph))
        def changed():
            return tiny.draw(pipe)

        first, second = changed(), changed()
        assert torch.equal(first, second)
        assert not torch.equal(first, untouched)
        assert torch.equal(tiny.draw(pipe), untouched)


class TestCopies:
    def test_a_deep_copy_made_inside_is_an_independent_pipeline(self, fresh):
        graph, plain = HookGraph(fresh), tiny.draw(fresh)
        with graph.apply(tiny.mask(graph)):
            twin = copy.deepcopy(fresh)
            changed = tiny.draw(fresh)
        assert not torch.equal(changed, plain)
        assert tiny.hooks(twin) == []
        assert not {*METHODS} & vars(twin).keys()
        assert torch.equal(tiny.draw(twin), plain)
        for parameter in twin.text_encoder.parameters():
            parameter.data.zero_()
        assert not torch.equal(tiny.draw(twin), plain)
        assert torch.equal(tiny.draw(fresh), plain)

    def test_a_deep_copy_made_in_the_middle_of_a_run_is_independent(self, fresh):
        graph, plain, twins = HookGraph(fresh), tiny.draw(fresh), []

        def keep(pipe, _step, _timestep, given):
            twins.append(copy.deepcopy(pipe))
            return given

        with graph.apply(tiny.mask(graph)):
            tiny.draw(fresh, callback_on_step_end=keep)
        for twin in twins:
            assert "step" not in vars(twin.scheduler)
            assert torch.equal(tiny.draw(twin), plain)

    def test_a_denoiser_pickles_inside_a_block(self, fresh):
        graph, plain, buffer = HookGraph(fresh), tiny.draw(fresh), io.BytesIO()
        with graph.apply(tiny.mask(graph)):
            torch.save(fresh.unet, buffer)
            tiny.draw(fresh)
        buffer.seek(0)
        restored = tiny.with_parts(fresh, unet=torch.load(buffer, weights_only=False))
        assert torch.equal(tiny.draw(restored), plain)


class TestThreads:
    def test_a_block_of_a_second_thread_is_refused(self, graph, pipe):
        found: list[BaseException] = []

        def other():
            try:
                with graph.apply(tiny.mask(graph)):
                    pass
            except InvalidInput as error:
                found.append(error)

        with graph.apply(tiny.mask(graph)):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            tiny.draw(pipe)
        assert [str(each).partition(",")[0] for each in found] == ["another thread has a block open on this model"]

    def test_a_denoiser_that_two_pipelines_share_is_one_model(self, graph, pipe):
        other, found = HookGraph(tiny.with_parts(pipe)), []

        def second():
            try:
                with other.capture():
                    pass
            except InvalidInput as error:
                found.append(error)

        with graph.apply(tiny.mask(graph)):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            tiny.draw(pipe)
        assert len(found) == 1

    def test_threads_may_open_blocks_one_after_the_other(self, graph, pipe, untouched):
        found = []

        def other():
            with graph.apply(tiny.mask(graph)):
                found.append(tiny.draw(pipe))

        for _ in range(2):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert torch.equal(*found)
        assert not torch.equal(found[0], untouched)


class TestPutBack:
    @pytest.mark.parametrize("raises", [None, ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
    def test_the_pipelines_own_methods_are_back_on_every_way_out(self, fresh, raises):
        graph = HookGraph(fresh)

        def stop(*_):
            if raises:
                raise raises
            return {}

        with pytest.raises(raises) if raises else contextlib.nullcontext(), graph.apply(tiny.mask(graph)):
            tiny.draw(fresh, callback_on_step_end=stop)
        assert not {*METHODS} & vars(fresh).keys()
        assert not {"step", "__deepcopy__"} & vars(fresh.scheduler).keys()

    def test_methods_that_a_user_replaced_stay(self, fresh):
        graph, calls = HookGraph(fresh), []

        def encode(*args, **options):
            calls.append(args)
            return StableDiffusionPipeline.encode_prompt(fresh, *args, **options)

        fresh.encode_prompt = encode
        with graph.apply(tiny.mask(graph)):
            tiny.draw(fresh)
        assert fresh.encode_prompt is encode
        assert len(calls) == 1


@dataclass(frozen=True)
class Returning(Intervention):
    """An intervention of a user's own that returns something odd."""

    kind: ClassVar[str] = "returning"
    paths: tuple[str, ...] = ()
    answer: object = None

    def on_output(self, activation, call):
        return self.answer(activation) if callable(self.answer) else self.answer

    def check(self, graph):
        """Fits every model."""

    def to_parts(self):
        return {}, {}

    @classmethod
    def from_parts(cls, tensors, header):
        return cls()


@pytest.mark.usefixtures("untyped")
class TestWhatInterventionsReturn:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (None, "Returning returned NoneType at unet.*; return a tensor there, or what it was given where it changes nothing"),
            (2.0, "Returning returned float at unet"),
            (lambda activation: activation[:, :-1], r"Returning returned \[2, 23, 32\] of torch.float64 instead of \[2, 24, 32\]"),
            (
                lambda activation: activation.float(),
                "of torch.float32 instead of .* of torch.float64 at .*; return a tensor like the given",
            ),
        ],
    )
    def test_what_no_site_can_become_is_an_error(self, graph, pipe, answer, message):
        (site,) = graph.sites.where(layer=8, role="value")
        with pytest.raises(InvalidInput, match=message), graph.apply(Returning((site.path,), answer)):
            tiny.draw(pipe)
        assert tiny.hooks(pipe) == []


@pytest.mark.usefixtures("untyped")
class TestArguments:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("x", "an intervention is the string 'x', not an object; write ns.NeuronMask"),
            ([1], r"interventions are given one by one; write graph.apply\(\*interventions\)"),
            (Returning, r"an intervention is the class Returning, not an object of it; write Returning\(.*\), with parentheses"),
            (3, "an intervention is a int, which does not fit"),
            (Neurons({"a": [0]}, {"a": 1}), "is no intervention; make one of it, such as ns.NeuronMask"),
        ],
        ids=["string", "list", "class", "number", "neurons"],
    )
    def test_what_is_no_intervention_is_refused(self, graph, pipe, given, message):
        for make in (lambda: graph.apply(given), lambda: graph.apply_each([[given]])):
            with pytest.raises(InvalidInput, match=message), make():
                raise AssertionError("the block was entered")
        assert tiny.hooks(pipe) == []

    @pytest.mark.parametrize("sites", ["x", 8, [8], [None]])
    def test_what_is_no_site_is_refused(self, graph, sites):
        for make in (lambda: graph.capture(sites), lambda: graph.observe(sites, print)):
            with pytest.raises(InvalidInput, match=r"sites.*such as graph.sites.where|write graph.sites.where"), make():
                raise AssertionError("the block was entered")
        with pytest.raises(InvalidInput, match="sites"):
            ContextSwap.of(graph, sites, "a red circle")

    @pytest.mark.parametrize(
        ("prompts", "options", "message"),
        [
            ("a red circle", {}, r"prompts are a list of strings, not the one string 'a red circle'; write \['a red circle'\]"),
            ([1], {}, "prompts are a list of strings, and 1 is none"),
            ([], {}, "there is no prompt to encode; give at least one"),
            (["a"], {"batch_size": 0}, "batch_size=0 is not allowed; give 1 or more"),
            (["a"], {"clip_skip": "1"}, "clip_skip='1' is no whole number"),
        ],
    )
    def test_what_is_no_list_of_prompts_is_refused(self, graph, prompts, options, message):
        with pytest.raises(InvalidInput, match=message):
            graph.text.encode(prompts, **options)

    def test_an_option_that_a_swap_does_not_have_is_refused_with_a_near_one(self, graph):
        with pytest.raises(InvalidInput, match="option 'strenght' is unknown; .*did you mean 'strength'"):
            ContextSwap.of(graph, graph.sites.where(layer=8, role="key"), "a star", strenght=0.5)
