"""Folding against applying, and taking it out again."""

import contextlib
import importlib

import pytest
import torch
from accelerate import cpu_offload

from neuroscope import ContextMap, ContextSwap, HookGraph, InvalidInput, LocoEdit, NeuronMask, Neurons, UnsupportedModel, edit, fold
from neuroscope.generation.keys import fingerprint
from neuroscope.pipeline.weights import outgoing_norm, write_parameter
from tests.families import tiny
from tests.numerics import rounding

folding = importlib.import_module("neuroscope.editing.fold")  # the package's `fold` is the function
CLOSE = rounding(torch.float32, terms=100)  # latents are of size 1, and maps and files hold their factors in float32


def mask(graph, role, **options):
    (site,) = graph.sites.where(layer=8, role=role)
    return NeuronMask(Neurons.at(graph.sites, {site.path: range(1, site.width, 3)}), rows="all", **options)


def some_heads(graph):
    return mask(graph, "heads", fill=-1.0, strength=0.4)


def a_map(graph, seed=0):
    width = graph.module(graph.sites.where(role="key")[0]).in_features
    factors = (0.3 * torch.randn(3, width, generator=torch.Generator().manual_seed(each)) for each in (seed, seed + 1))
    return ContextMap(graph.sites.where(layer=[6, 8], text_only=True).paths, *factors)


FOLDABLE = {
    "map": lambda graph: (a_map(graph),),
    "half a map": lambda graph: (ContextMap(a_map(graph).paths, a_map(graph).read, a_map(graph).write, strength=0.5),),
    **{
        f"mask of {role}": lambda graph, role=role: (mask(graph, role),)
        for role in ("key", "value", "query", "heads", "output", "feedforward")
    },
    **{
        f"half a mask of {role} with a fill": lambda graph, role=role: (mask(graph, role, strength=0.5, fill=2.0),)
        for role in ("key", "value", "heads", "output", "feedforward")
    },
    "two maps": lambda graph: (a_map(graph), a_map(graph, seed=2)),
    "values and heads with fills": lambda graph: (
        mask(graph, "value", fill=1.0, strength=0.7),
        mask(graph, "heads", fill=-1.0, strength=0.4),
    ),
    "heads and values with fills": lambda graph: (
        mask(graph, "heads", fill=-1.0, strength=0.4),
        mask(graph, "value", fill=1.0, strength=0.7),
    ),
    "two masks of one site": lambda graph: (mask(graph, "heads", fill=1.0, strength=0.7), some_heads(graph)),
    "two masks of one site's values": lambda graph: (
        mask(graph, "value", fill=1.0, strength=0.7),
        mask(graph, "value", fill=-2.0, strength=0.4),
    ),
    "two masks of one feed-forward": lambda graph: (
        mask(graph, "feedforward", fill=1.0, strength=0.7),
        mask(graph, "feedforward", fill=-2.0, strength=0.4),
    ),
    "outputs behind heads": lambda graph: (
        mask(graph, "output", fill=1.0, strength=0.7),
        mask(graph, "heads", fill=2.0),
        mask(graph, "output", fill=-2.0, strength=0.4),
    ),
    "several": lambda graph: (mask(graph, "value", fill=1.0), a_map(graph), mask(graph, "heads", strength=0.3), mask(graph, "key")),
}


def weights(pipe):
    return {name: value.clone() for name, value in pipe.unet.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", FOLDABLE)
def test_folded_equals_applied_and_restored_is_bit_exact(graph, pipe, untouched, name):
    changes = FOLDABLE[name](graph)
    before = weights(pipe)
    with graph.apply(*changes):
        applied = tiny.draw(pipe)
    folded = fold(graph, *changes)
    try:
        drawn = tiny.draw(pipe)
    finally:
        folded.restore()
    torch.testing.assert_close(drawn, applied, rtol=0, atol=CLOSE)
    assert float((applied - untouched).abs().max()) > 10 * CLOSE
    assert same(weights(pipe), before)
    assert torch.equal(tiny.draw(pipe), untouched)


def test_masked_rows_are_zero_and_the_others_keep_their_bits(graph):
    (site,) = graph.sites.where(layer=8, role="value")
    before = graph.module(site).weight.detach().clone()
    with fold(graph, mask(graph, "value")):
        after = graph.module(site).weight.detach().clone()
    chosen = torch.zeros(site.width, dtype=torch.bool)
    chosen[1::3] = True
    assert (after[chosen] == 0).all()
    assert torch.equal(after[~chosen], before[~chosen])


def test_leaving_a_block_by_an_error_restores(graph, pipe):
    before = weights(pipe)
    with pytest.raises(KeyboardInterrupt), fold(graph, a_map(graph)):  # noqa: PT012
        assert not same(weights(pipe), before)
        raise KeyboardInterrupt
    assert same(weights(pipe), before)


def test_restoring_twice_does_nothing_and_says_what_it_is(graph):
    folded = fold(graph, a_map(graph))
    assert repr(folded) == "Folded(ContextMap: in 4 weights)"
    folded.restore()
    folded.restore()
    assert repr(folded) == "Folded(ContextMap: taken out of 4 weights)"


def test_folds_are_taken_out_in_reverse_order(graph, pipe):
    before = weights(pipe)
    first, second = fold(graph, a_map(graph)), fold(graph, mask(graph, "value"))
    with pytest.raises(InvalidInput, match="was changed after this was folded; take out later changes first, in reverse order"):
        first.restore()
    second.restore()
    first.restore()
    assert same(weights(pipe), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_formats_are_rounded_once(fresh, dtype):
    fresh.to(dtype=dtype)
    graph = HookGraph(fresh)
    made = a_map(graph)
    before = weights(fresh)
    (site,) = graph.sites.where(layer=8, role="key")
    wide = graph.module(site).weight.detach().double()
    expected = (wide + wide @ made.write.double().T @ made.read.double()).to(dtype)
    with fold(graph, made):
        assert torch.equal(graph.module(site).weight, expected)
    assert same(weights(fresh), before)


def test_offloaded_weights_are_read_like_others(fresh, graph, pipe):
    fresh.unet.load_state_dict(pipe.unet.state_dict())
    expected = fingerprint(HookGraph(fresh))
    cpu_offload(fresh.unet, execution_device="cpu")
    offloaded = HookGraph(fresh)
    assert fingerprint(offloaded) == expected
    (site,) = graph.sites.where(layer=8, role="value")
    assert torch.equal(outgoing_norm(offloaded.family, offloaded.denoiser, site), outgoing_norm(graph.family, graph.denoiser, site))


def test_offloaded_weights_are_changed_where_they_rest(fresh, graph, pipe):
    with fold(graph, a_map(graph)):
        expected = tiny.draw(pipe)
    fresh.unet.load_state_dict(pipe.unet.state_dict())
    untouched = tiny.draw(fresh)
    cpu_offload(fresh.unet, execution_device="cpu")
    offloaded = HookGraph(fresh)
    with fold(offloaded, a_map(offloaded)):
        assert {each.device.type for each in fresh.unet.parameters()} == {"meta"}
        assert torch.equal(tiny.draw(fresh), expected)
    assert torch.equal(tiny.draw(fresh), untouched)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": "conditional"}, r"neuron-mask with rows='conditional' cannot be written .* or make it with rows='all'"),
        ({"tokens": (0,)}, r"neuron-mask with tokens=\(0,\) cannot be written into weights"),
        (
            {"steps": (0.0, 0.5)},
            r"neuron-mask with steps=\(0.0, 0.5\) cannot be written into weights, which act on all",
        ),
    ],
)
def test_what_weights_cannot_hold_is_refused_and_nothing_is_changed(graph, pipe, options, words):
    before = weights(pipe)
    (site,) = graph.sites.where(layer=8, role="value")
    narrow = NeuronMask(Neurons.at(graph.sites, {site.path: [0]}), **({"rows": "all"} | options))
    with pytest.raises(InvalidInput, match=words):
        fold(graph, a_map(graph), narrow)
    assert same(weights(pipe), before)


def test_swaps_query_fills_and_nothing_are_refused(graph):
    swap = ContextSwap.of(graph, graph.sites.where(layer=8, text_only=True), tiny.OTHER)
    with pytest.raises(InvalidInput, match="a context-swap cannot be written into weights: .* another prompt; apply it instead"):
        fold(graph, swap)
    with pytest.raises(InvalidInput, match="the mask's fill at .*to_q cannot be written into weights: nothing there is constant"):
        fold(graph, mask(graph, "query", fill=1.0))
    with pytest.raises(InvalidInput, match="there is nothing to fold; give at least one intervention"):
        fold(graph)


def test_weights_in_eight_bits_are_refused(fresh):
    graph = HookGraph(fresh)
    made = a_map(graph)
    fresh.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float64)
    with pytest.raises(UnsupportedModel, match="is a Linear of torch.float8_e4m3fn, which cannot be changed exactly"):
        fold(graph, made)


def test_an_edit_folds_too(graph, pipe, concept):
    made = edit(graph, concept, LocoEdit(), 8)
    with graph.apply(made):
        applied = tiny.draw(pipe)
    with fold(graph, made):
        torch.testing.assert_close(tiny.draw(pipe), applied, rtol=0, atol=CLOSE)


class Interrupting:
    """Writes parameters, and is interrupted before or after the k-th."""

    def __init__(self, at, after):
        self.left, self.after = at, after

    def __call__(self, root, name, values):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise KeyboardInterrupt
        write_parameter(root, name, values)
        if self.left == 0:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupted(monkeypatch, number, after):
    monkeypatch.setattr(folding, "write_parameter", Interrupting(number, after))
    with pytest.raises(KeyboardInterrupt):
        yield
    monkeypatch.undo()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_interrupted_at_any_write_all_or_nothing_is_folded(fresh, dtype, after, monkeypatch):
    fresh.to(dtype=dtype)
    graph = HookGraph(fresh)
    made = a_map(graph)
    with fold(graph, made) as folded:
        changed, count = weights(fresh), len(folded._before)
    before = weights(fresh)
    for number in range(1, count + 1):
        with interrupted(monkeypatch, number, after):
            fold(graph, made)
        assert same(weights(fresh), before)
        folded = fold(graph, made)
        assert same(weights(fresh), changed)
        with interrupted(monkeypatch, number, after):
            folded.restore()
        folded.restore()
        assert same(weights(fresh), before)
    assert count > 1


def test_weights_with_nan_are_restored_too(fresh):
    graph = HookGraph(fresh)
    made = a_map(graph)
    (site,) = graph.sites.where(layer=8, role="value")
    with torch.no_grad():
        graph.module(site).weight[1] = torch.nan
    before = {name: value.numpy().tobytes() for name, value in weights(fresh).items()}
    fold(graph, made).restore()
    assert {name: value.numpy().tobytes() for name, value in weights(fresh).items()} == before


def test_a_change_that_the_weights_format_cannot_hold_is_refused_and_nothing_is_changed(fresh):
    fresh.to(dtype=torch.float16)
    graph = HookGraph(fresh)
    before = weights(fresh)
    made = a_map(graph)
    with pytest.raises(InvalidInput, match="is too large for torch.float16; make it weaker, or load the model in a wider format"):
        fold(graph, ContextMap(made.paths, made.read, made.write, strength=1e9))
    assert same(weights(fresh), before)
