"""The throughput benchmark tries every layer, and a UNet compiled around its cross-attentions is compiled once for all windows."""

import itertools

import pytest
import torch
from torch._dynamo.utils import counters

import neuroscope as ns
from benchmarks import throughput
from neuroscope.generation.batches import Row, Sweep
from tests.families import tiny
from tests.numerics import NETWORK, close, rounding

OPTIONS = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.exact(ns.testbed.load("sd1/layer"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(graph, layers):
    """An image for each layer that reads the other prompt."""
    present, absent = throughput.PRESENT, throughput.ABSENT
    sweep = Sweep(graph, [present, absent], OPTIONS, batch_size=len(layers), space="latent")
    other = sweep.conditions(absent).context
    rows = [Row(present, 0, (ns.ContextSwap(graph.sites.where(layer=layer, text_only=True).paths, other),)) for layer in layers]
    return torch.stack(next(sweep.run(rows))[1])


def test_every_layer_has_its_turn(pipe, monkeypatch):
    graph, seen = ns.HookGraph(pipe), []
    monkeypatch.setattr(throughput, "_draw", lambda _sweep, rows: seen.extend(rows))
    for draw in itertools.islice(throughput.windows(graph, OPTIONS, 6), 3):
        draw()
    layers = [{site.layer for site in graph.sites.at(row.changes[0].paths)} for row in seen]
    assert layers == [{number % 16} for number in range(18)]


def test_a_twin_shares_weights_and_no_module(pipe):
    twin = throughput.sharing_weights(pipe)
    assert all(ours is theirs for ours, theirs in zip(pipe.unet.parameters(), twin.unet.parameters(), strict=True))
    assert not set(pipe.unet.modules()) & set(twin.unet.modules())


def test_windows_of_a_compiled_denoiser_are_right_and_compile_nothing_anew(pipe):
    compiled = throughput.compiled(throughput.with_open_attention(throughput.sharing_weights(pipe)), "eager")
    graph = ns.HookGraph(compiled, eager=False)
    latents(graph, [0, 1])
    before = counters["stats"]["unique_graphs"]
    for layers in ([2, 3], [14, 15], [0, 0]):
        expected = latents(ns.HookGraph(pipe), layers)
        same = rounding(terms=NETWORK, scale=float(expected.abs().max()))
        assert (float((expected[0] - expected[1]).abs().max()) < same) == (layers == [0, 0])
        close(latents(graph, layers), expected)
    assert counters["stats"]["unique_graphs"] == before
