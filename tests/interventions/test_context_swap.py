from dataclasses import replace

import pytest
import torch

from neuroscope import ContextSwap, InvalidInput, Neurons, UnknownSite, load, save
from tests.families import tiny

PROMPTS = ["a red circle", "the emblem of astoria"]
TARGETS = ["a blue star in the style of stipple", "a cyan ring"]


@pytest.fixture
def text(graph):
    return graph.sites.where(text_only=True)


def drawn_with(graph, *interventions, prompts=tiny.PROMPT, **options) -> torch.Tensor:
    with graph.apply(*interventions):
        return tiny.draw(graph.pipe, prompts, **options)


def values_with(graph, site, *interventions, prompts, **options) -> torch.Tensor:
    """What a site gives in a run of one step: [row, token, neuron]."""
    with graph.apply(*interventions), graph.capture([site]) as captured:
        tiny.draw(graph.pipe, prompts, num_inference_steps=1, **options)
    return captured[site.path][0]


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_all_sites_swapped_are_the_target_run(graph, pipe, text, untouched, scale):
    target = tiny.draw(pipe, tiny.OTHER, guidance_scale=scale)
    found = drawn_with(graph, ContextSwap.of(graph, text, tiny.OTHER), guidance_scale=scale)
    torch.testing.assert_close(found, target, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, untouched, rtol=1e-2, atol=1e-2)


def test_without_guidance_all_sites_swapped_are_the_target_run_to_the_bit(graph, pipe, text):
    target = tiny.draw(pipe, tiny.OTHER, guidance_scale=1.0)
    assert torch.equal(drawn_with(graph, ContextSwap.of(graph, text, tiny.OTHER), guidance_scale=1.0), target)


def test_a_swap_to_the_own_prompt_changes_nothing(graph, text, untouched):
    torch.testing.assert_close(drawn_with(graph, ContextSwap.of(graph, text, tiny.PROMPT)), untouched, rtol=1e-5, atol=1e-5)


def test_a_swapped_site_projects_the_other_prompts_context(graph, text):
    for site in text.where(layer=[0, 8]):
        found = values_with(graph, site, ContextSwap.of(graph, [site], TARGETS[0]), prompts=PROMPTS[:1])
        with torch.no_grad():
            torch.testing.assert_close(found[1:], graph.module(site)(graph.text.encode(TARGETS[:1])))


class TestSeveralPrompts:
    """Every row must read the target of its own prompt."""

    @pytest.fixture
    def site(self, text):
        return text.where(layer=8, role="value")[0]

    def expected(self, graph, site, prompts) -> torch.Tensor:
        with torch.no_grad():
            return graph.module(site)(graph.text.encode(prompts))

    @pytest.mark.parametrize("images", [1, 2])
    @pytest.mark.parametrize("scale", [7.5, 1.0])
    def test_each_prompt_has_its_own_target(self, graph, site, images, scale):
        swap = ContextSwap.of(graph, [site], TARGETS)
        found = values_with(graph, site, swap, prompts=PROMPTS, num_images_per_prompt=images, guidance_scale=scale)
        expected = self.expected(graph, site, [target for target in TARGETS for _ in range(images)])
        torch.testing.assert_close(found[-len(expected) :], expected)

    @pytest.mark.parametrize("images", [1, 2])
    def test_in_all_rows_each_half_of_the_batch_has_the_targets(self, graph, site, images):
        swap = ContextSwap.of(graph, [site], TARGETS, rows="all")
        found = values_with(graph, site, swap, prompts=PROMPTS, num_images_per_prompt=images)
        expected = self.expected(graph, site, [target for target in TARGETS for _ in range(images)])
        torch.testing.assert_close(found, torch.cat([expected, expected]))

    def test_one_target_serves_all_prompts(self, graph, site):
        found = values_with(graph, site, ContextSwap.of(graph, [site], TARGETS[0]), prompts=PROMPTS)
        torch.testing.assert_close(found[2:], self.expected(graph, site, [TARGETS[0]] * 2))

    def test_a_batch_of_swaps_is_the_single_swaps(self, graph, pipe, text):
        together = drawn_with(graph, ContextSwap.of(graph, text, TARGETS), prompts=PROMPTS)
        for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
            alone = drawn_with(graph, ContextSwap.of(graph, text, target), prompts=[prompt], seed=row)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)

    def test_rows_that_cannot_be_shared_out_are_refused(self, graph, site):
        swap = ContextSwap.of(graph, [site], [*TARGETS, "a star"])
        with pytest.raises(
            InvalidInput, match="holds contexts of 3 prompts, which 2 rows cannot be shared among; give one or as many as prompts"
        ):
            values_with(graph, site, swap, prompts=PROMPTS)


def test_chosen_neurons_alone_read_the_other_prompt(graph, text):
    site = text.where(layer=8, role="value")[0]
    swap = ContextSwap.of(graph, [site], TARGETS[0])
    chosen = ContextSwap.of(graph, [site], TARGETS[0], neurons=Neurons.at(graph.sites, {site.path: [1, 30]}))
    plain, whole, some = (values_with(graph, site, *each, prompts=PROMPTS[:1]) for each in ((), (swap,), (chosen,)))
    expected = plain.clone()
    expected[1][:, [1, 30]] = whole[1][:, [1, 30]]
    assert torch.equal(some, expected)


class TestStrength:
    """Between the run's own prompt and the other."""

    @pytest.fixture(params=["site", "neurons"])
    def swap(self, request, graph, text):
        site = text.where(layer=8, role="value")[0]
        neurons = Neurons.at(graph.sites, {site.path: range(site.width)}) if request.param == "neurons" else None
        return ContextSwap.of(graph, [site], TARGETS[0], neurons=neurons)

    def test_at_none_and_all_it_is_one_of_both_to_the_bit(self, graph, text, swap, untouched):
        site = text.where(layer=8, role="value")[0]
        assert torch.equal(drawn_with(graph, replace(swap, strength=0.0)), untouched)
        with torch.no_grad():
            plain, own = (values_with(graph, site, *each, prompts=PROMPTS[:1]) for each in ((), (replace(swap, strength=1.0),)))
            assert torch.equal(own[0], plain[0])
            torch.testing.assert_close(own[1:], graph.module(site)(graph.text.encode(TARGETS[:1])))
        assert torch.equal(drawn_with(graph, replace(swap, strength=1.0)), drawn_with(graph, swap))

    @pytest.mark.parametrize("strength", [0.25, -0.5, 2.0])
    def test_in_between_and_beyond_it_is_on_the_line_through_both(self, graph, text, swap, strength):
        site = text.where(layer=8, role="value")[0]
        own, half, other = (
            values_with(graph, site, *each, prompts=PROMPTS[:1]) for each in ((), (replace(swap, strength=strength),), (swap,))
        )
        torch.testing.assert_close(half, own + strength * (other - own))

    def test_it_is_saved(self, swap, tmp_path):
        half = replace(swap, strength=0.5)
        assert load(save(half, tmp_path / "half.safetensors"), ContextSwap).strength == 0.5
        assert "strength=0.5" in repr(half)


def test_it_keeps_where_it_comes_from(graph, text):
    swap = ContextSwap.of(graph, text, TARGETS[0])
    assert (swap.provenance.family, swap.provenance.model) == (graph.family.name, graph.model)
    assert torch.equal(swap.context, graph.text.encode(TARGETS[:1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": []}, "the swap has no site; choose keys and values, such as graph.sites.where"),
        ({"context": torch.zeros(2, 3)}, r"the swap's context has shape \(2, 3\); give \[prompt, token, channel\], from graph.text.encode"),
        ({"neurons": Neurons({"b": [0]}, {"b": 2})}, "the swap's neurons are of b, which is not among its sites"),
        ({"rows": "al"}, r"rows 'al' is unknown; choose one of conditional, all; did you mean 'all'\?"),
        ({"steps": (1.0, 0.0)}, r"steps=\(1.0, 0.0\) is not a part of the schedule"),
    ],
)
def test_an_impossible_swap_is_refused(untyped, options, message):
    with pytest.raises(InvalidInput, match=message):
        ContextSwap(**({"paths": ["a"], "context": torch.zeros(1, 2, 3)} | options))


def test_a_site_that_does_not_read_the_prompt_alone_is_refused(graph):
    sites = graph.sites.where(layer=8, role=["query", "value"])
    with pytest.raises(InvalidInput, match=r"attn2.to_q does not read the prompt alone; swap the context of keys and values"):
        ContextSwap.of(graph, sites, "a star").check(graph.spec)


def test_a_site_that_the_model_lacks_is_refused(graph):
    with pytest.raises(UnknownSite, match="has no site unet.none"):
        ContextSwap(["unet.none"], torch.zeros(1, 24, 96)).check(graph.spec)


@pytest.mark.parametrize(
    ("shape", "width"), [((1, 24, 32), 32), ((1, 5, 96), 32), ((1, 24, 96), 64)], ids=["channels", "tokens", "neurons"]
)
def test_a_context_or_neurons_of_another_model_are_refused_before_any_picture(graph, pipe, text, shape, width):
    site = text.where(layer=8, role="value")[0]
    swap = ContextSwap([site.path], torch.zeros(shape), Neurons({site.path: [width - 1]}, {site.path: width}))
    with tiny.counted(pipe.unet) as calls, pytest.raises((InvalidInput, UnknownSite)):
        drawn_with(graph, swap)
    assert calls == []


@pytest.fixture(scope="module")
def long(graph):
    """Contexts of two chunks: of the run, of the swap and of nothing."""
    return [
        torch.cat([graph.text.encode([text]), graph.text.encode([more])], dim=1)
        for text, more in [("a ring", "a star"), TARGETS[:2], ("", "")]
    ]


class TestPromptsOfSeveralChunks:
    """Longer contexts, as libraries for long prompts make them: several times the tokens that the encoder reads at once."""

    @pytest.mark.parametrize("neurons", [False, True], ids=["whole", "neurons"])
    def test_a_swap_of_them_is_the_other_prompts_run(self, graph, pipe, long, neurons):
        own, other, nothing = long
        sites = graph.sites.where(role=("key", "value"))
        every = Neurons({site.path: range(site.width) for site in sites}, {site.path: site.width for site in sites}) if neurons else None
        noise = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "latent"}
        expected = pipe(prompt_embeds=other, negative_prompt_embeds=nothing, **noise).images
        with graph.apply(ContextSwap(sites.paths, other, every)):
            found = pipe(
                prompt_embeds=own, negative_prompt_embeds=nothing, **noise | {"generator": torch.Generator().manual_seed(0)}
            ).images
        torch.testing.assert_close(found, expected, rtol=0, atol=float(1e-4 * expected.abs().max()))

    @pytest.mark.parametrize("neurons", [False, True], ids=["whole", "neurons"])
    def test_another_number_of_chunks_than_the_run_has_is_refused(self, graph, pipe, long, neurons):
        site = graph.sites.where(layer=8, role="value")[0]
        chosen = Neurons({site.path: [0]}, {site.path: site.width}) if neurons else None
        swap = ContextSwap([site.path], long[1], chosen)
        message = (
            "the swap's context has 48 tokens, and this run's 24; make the swap of contexts of as many chunks as the run's prompt_embeds"
        )
        with pytest.raises(InvalidInput, match=message):
            drawn_with(graph, swap)
        assert tiny.hooks(pipe) == []
