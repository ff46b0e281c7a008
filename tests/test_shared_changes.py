"""What keys and values of a layer read is changed once for both, and kept no longer than they need it."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from neuroscope import ContextSwap, HookGraph
from neuroscope.core.intervention import Call
from neuroscope.pipeline.hooks import Shared
from neuroscope.pipeline.steps import Clock
from tests.families import tiny

CALL = Call.__new__(Call)


@pytest.fixture
def clock() -> Clock:
    clock = Clock.__new__(Clock)
    clock.ticks = 1
    return clock


@pytest.fixture
def shared(clock) -> Shared:
    made = Shared(lambda tensor, _call: tensor + 1, clock)
    made.readers = 2
    return made


def test_the_second_reader_of_the_same_input_gets_what_the_first_got(shared):
    given = torch.zeros(3)
    assert shared(given, CALL) is shared(given, CALL)
    assert shared(given, CALL) is not shared(torch.zeros(3), CALL)


def test_in_another_call_of_the_denoiser_it_is_made_anew(shared, clock):
    given = torch.zeros(3)
    first = shared(given, CALL)
    clock.ticks = 2
    assert shared(given, CALL) is not first


def test_after_the_last_reader_nothing_is_kept(shared):
    given = torch.zeros(3)
    kept = [weakref.ref(given), *(weakref.ref(shared(given, CALL)) for _ in range(2))]
    del given
    gc.collect()
    assert [each() for each in kept] == [None] * 3


@pytest.mark.parametrize(("roles", "calls"), [(("key", "value"), 1), (("key",), 1), (("value",), 1)])
def test_a_layer_is_asked_once_a_step(graph, monkeypatch, roles, calls):
    asked, on_input = [], ContextSwap.on_input
    monkeypatch.setattr(ContextSwap, "on_input", lambda self, context, call: asked.append(call.step) or on_input(self, context, call))
    swap = ContextSwap.of(graph, graph.sites.where(layer=8, role=roles), tiny.OTHER)
    with graph.apply(swap):
        tiny.draw(graph.pipe)
    assert asked == [step for step in range(2) for _ in range(calls)]


@pytest.mark.parametrize("family", ["sd1", "sdxl", "if-1"])
def test_two_changes_of_one_layer_are_what_each_site_alone_would_do(family):
    """Keys read one prompt and values another, and then both the same."""
    graph = HookGraph(tiny.PIPELINES[family]())
    key, value = (graph.sites.where(layer=0, role=role) for role in ("key", "value"))
    together = ContextSwap.of(graph, [*key, *value], tiny.OTHER)
    apart = [ContextSwap.of(graph, each, tiny.OTHER) for each in (key, value)]
    with graph.apply(together):
        expected = tiny.draw(graph.pipe)
    with graph.apply(*apart):
        assert torch.equal(tiny.draw(graph.pipe), expected)
    with graph.apply(apart[0]):
        assert not torch.equal(tiny.draw(graph.pipe), expected)


def test_rows_that_were_first_chosen_in_inference_mode_serve_gradients_later(graph):
    """What a run in inference mode leaves behind is no tensor that autograd refuses."""
    swap = ContextSwap.of(graph, graph.sites.where(layer=8, text_only=True), tiny.OTHER)
    changes = [[swap], [], []]
    with torch.inference_mode(), graph.apply_each(changes):
        tiny.draw(graph.pipe, [tiny.PROMPT] * 3, guidance_scale=1.0)
    inputs = graph.family.inputs(graph.denoiser, None) | {"return_dict": False}
    given = {name: value.expand(3, *value.shape[1:]) if value.ndim else value for name, value in inputs.items() if torch.is_tensor(value)}
    context = graph.text.conditions([tiny.PROMPT] * 3).context.clone().requires_grad_()
    with graph.apply_each([[replace(swap, rows="all")], [], []]):
        graph.denoiser(**given | {"encoder_hidden_states": context, "return_dict": False})[0].sum().backward()
    assert context.grad.isfinite().all()
