"""Denoisers that torch.compile wrapped or rewrote: the same as uncompiled ones, or an error that names the cause."""

import copy

import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
)

from neuroscope import HookGraph, SiteNeverRan, fold
from neuroscope.pipeline.families import uncompiled
from tests.families import tiny
from tests.families.tiny import mask


@pytest.mark.filterwarnings("ignore")
class TestCompiled:
    """Compiled code keeps the hooks that it was compiled with, so blocks run the modules as they were written."""

    @pytest.fixture
    def small(self, pipe) -> StableDiffusionPipeline:
        """A denoiser of four layers, which compiles quickly."""
        blocks = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
        torch.manual_seed(0)
        unet = tiny.build_unet(**blocks, block_out_channels=[32, 32], layers_per_block=1).eval()
        return tiny.with_parts(pipe, unet=unet)

    @pytest.fixture
    def untouched(self, small) -> torch.Tensor:
        return tiny.draw(small)

    @pytest.fixture
    def expected(self, small) -> torch.Tensor:
        graph = HookGraph(small)
        with graph.apply(mask(graph, layer=0)):
            return tiny.draw(small)

    @pytest.fixture(params=["wrapped", "in place", "block by block"])
    def compiled(self, request, small, untouched, expected):
        if request.param == "wrapped":
            small.unet = torch.compile(small.unet, backend="eager")
        elif request.param == "in place":
            small.unet.compile(backend="eager")
        else:
            for block in small.unet.down_blocks:
                block.compile(backend="eager")
        return small

    def test_hooks_run_before_and_after_the_first_compiled_call(self, compiled, expected, untouched):
        mine = HookGraph(compiled)
        with mine.apply(mask(mine, layer=0)):
            assert torch.equal(tiny.draw(compiled), expected)
        torch.testing.assert_close(tiny.draw(compiled), untouched)  # outside it runs compiled
        with mine.apply(mask(mine, layer=0)):
            assert torch.equal(tiny.draw(compiled), expected)

    def test_blocks_may_end_in_any_order_and_the_last_lets_compiled_code_run(self, small):
        compiled = []
        small.unet.down_blocks[0].compile(backend=lambda module, _inputs: compiled.append(module) or module.forward)
        graph = HookGraph(small)
        first, second = graph.apply(mask(graph, layer=0)), graph.apply(mask(graph, layer=3))
        first.__enter__()
        second.__enter__()
        tiny.draw(small)
        first.__exit__(None, None, None)
        tiny.draw(small)
        second.__exit__(None, None, None)
        assert not compiled
        tiny.draw(small)
        assert compiled

    def test_without_eager_what_was_compiled_before_is_an_error_with_that_cause(self, compiled):
        tiny.draw(compiled)
        mine = HookGraph(compiled, eager=False)
        known = "the denoiser was compiled before it was hooked; make the graph with eager=True"
        with pytest.raises(SiteNeverRan, match=known), mine.apply(mask(mine, layer=0)):
            tiny.draw(compiled)

    def test_folding_into_a_compiled_denoiser_is_folding_into_a_plain_one(self, compiled, untouched):
        """Weights are found by the names of the module that was compiled, and compiled code reads them."""
        plain = HookGraph(tiny.with_parts(compiled, unet=copy.deepcopy(uncompiled(compiled.unet))))
        change = mask(plain, "all", layer=0)
        with fold(plain, change):
            expected = tiny.draw(plain.pipe)
        tiny.draw(compiled)
        with fold(HookGraph(compiled), change):
            torch.testing.assert_close(tiny.draw(compiled), expected)
        assert not torch.allclose(expected, untouched, atol=1e-2)
