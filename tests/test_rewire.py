"""Whole components replaced in a run."""

import pytest
import torch

from neuroscope import HookGraph, SiteNeverRan, UnknownSite
from neuroscope.core.conditions import BatchLayout
from tests.families import tiny


class TestRewire:
    """Two rows, the first with a clean context and the second with another, from the same noise."""

    def run(self, graph: HookGraph, scale: float = 7.5) -> torch.Tensor:
        contexts = graph.text.encode([tiny.PROMPT, tiny.OTHER])
        negative, noise = graph.text.encode(["", ""]), [torch.Generator().manual_seed(0) for _ in range(2)]
        options = {"num_inference_steps": 2, "height": 32, "width": 32, "guidance_scale": scale, "output_type": "latent"}
        return graph.pipe(prompt_embeds=contexts, negative_prompt_embeds=negative, generator=noise, **options).images

    def taking(self, output: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        """The second row takes what the first one has."""
        halves = output.chunk(len(layout.parts))
        return torch.cat([half[:1].expand_as(half) for half in halves])

    @pytest.mark.parametrize("scale", [7.5, 1.0])
    def test_a_row_that_takes_every_component_from_another_is_the_other_to_the_bit(self, graph, scale):
        clean, other = self.run(graph, scale)
        with graph.rewire({place.path: self.taking for place in graph.components}):
            first, second = self.run(graph, scale)
        assert torch.equal(first, clean)
        assert torch.equal(second, clean)
        assert not torch.allclose(other, clean, atol=1e-2)

    @pytest.mark.parametrize("kind", ["cross", "self", "ff", "resnet"])
    def test_one_component_moves_its_row_and_leaves_the_other_to_the_bit(self, graph, kind):
        clean, other = self.run(graph)
        place = [place for place in graph.components if place.kind == kind][-1]
        with graph.rewire({place.path: self.taking}):
            first, second = self.run(graph)
        assert torch.equal(first, clean)
        assert not torch.allclose(second, other, atol=1e-3)
        assert not torch.allclose(second, clean, atol=1e-3)

    def test_what_is_given_back_unchanged_changes_nothing(self, graph):
        plain, told = self.run(graph), []
        with graph.rewire({place.path: lambda output, layout: told.append(layout.parts) or output for place in graph.components}):
            assert torch.equal(self.run(graph), plain)
        assert told == [("unconditional", "conditional")] * 70 * 2

    def test_a_component_that_the_model_lacks_is_refused_with_a_near_one(self, graph):
        message = "the model has no component unet.mid_block.resnets.7; did you mean 'unet.mid_block.resnets.[01]'"
        with pytest.raises(UnknownSite, match=message), graph.rewire({"unet.mid_block.resnets.7": self.taking}):
            self.run(graph)

    def test_a_block_without_a_run_is_an_error(self, graph):
        with (
            pytest.raises(SiteNeverRan, match="the pipeline did not run inside the block"),
            graph.rewire({graph.components[0].path: self.taking}),
        ):
            pass

    def test_after_an_exception_no_hook_is_left(self, graph, pipe):
        with pytest.raises(ZeroDivisionError), graph.rewire({graph.components[3].path: lambda output, layout: 1 / 0}):
            self.run(graph)
        assert tiny.hooks(pipe) == []
