from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

from neuroscope import ContextSwap, HookGraph, InvalidInput, NeuronMask, Neurons, SiteNeverRan
from neuroscope.generation.batches import LARGEST_BATCH, Row, Sweep, bytes_an_image, fitted_batch_size
from tests.families import tiny
from tests.numerics import NETWORK, close, rounding

BASE, GOAL, THIRD = "a red circle in the style of plain", "a blue star in the style of stipple", "a cyan ring"
SMALL = {"num_inference_steps": 2, "height": 32, "width": 32}
TOLERANCE = rounding(terms=NETWORK)  # of the largest latent: batches of another size add in another order
VISIBLE = 1e-3
FULL = torch.OutOfMemoryError("CUDA out of memory")
STRONG = [0, 1, 11, 13, 15]  # layers near both ends of a random UNet move its output most
MODELS = {
    "sd1 DDIM": (tiny.sd1, DDIMScheduler, {}),
    "sd1 Euler": (tiny.sd1, EulerDiscreteScheduler, {}),
    "sd2 DDIM": (tiny.sd2, DDIMScheduler, {}),
    "sd2 PNDM": (tiny.sd2, PNDMScheduler, {"skip_prk_steps": True}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> HookGraph:
    build, scheduler, options = MODELS[request.param]
    pipe = build()
    return HookGraph(tiny.with_parts(pipe, scheduler=scheduler.from_config(pipe.scheduler.config, **options)))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest latent."""
    return float((found - expected).abs().max() / expected.abs().max())


def sweep_of(graph: HookGraph, batch_size: int = 16, scale: float = 7.5, **options) -> Sweep:
    space = options.pop("space", "latent")
    return Sweep(graph, [BASE, GOAL, THIRD], SMALL | {"guidance_scale": scale} | options, batch_size=batch_size, space=space)


def made(sweep: Sweep, rows: list[Row], **options) -> torch.Tensor:
    return torch.stack([each for _, latents in sweep.run(rows, **options) for each in latents])


def swap(graph: HookGraph, layers, text: str = GOAL, **options) -> ContextSwap:
    return ContextSwap.of(graph, graph.sites.where(layer=layers, text_only=True), text, **options)


def mask(graph: HookGraph, strength: float = 1.0, fill: float = 3.0) -> NeuronMask:
    sites = graph.sites.where(layer=[3, 9], role="value")
    return NeuronMask(Neurons.at(graph.sites, {path: range(0, 32, 2) for path in sites.paths}), fill=fill, strength=strength)


def mixed(graph: HookGraph) -> list[Row]:
    """Rows whose texts, seeds and changes all differ, in an order that separates rows of one change."""
    masked, both = mask(graph), swap(graph, [14, 15], rows="all")
    return [
        Row(BASE, 0, (swap(graph, 1),)),
        Row(BASE, 1),
        Row(THIRD, 2, (masked,)),
        Row(BASE, 0, (swap(graph, 13), masked)),
        Row(THIRD, 1, (both,)),
        Row(THIRD, 0, (both, mask(graph, strength=0.5))),
    ]


@contextmanager
def reading(graph: HookGraph, layer: int, text: str, guided: bool):
    """One layer's keys and values read another prompt, by the published way: `attn2` is given other encoder states."""
    context = graph.text.encode([text])

    def change(_module, args, kwargs):
        states = kwargs["encoder_hidden_states"].clone()
        states[len(states) // 2 if guided else 0 :] = context
        return args, kwargs | {"encoder_hidden_states": states}

    path = graph.sites.where(layer=layer, role="key")[0].module.removesuffix(".to_k")
    handle = graph.denoiser.get_submodule(path).register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class TestRowsOfABatch:
    @pytest.mark.parametrize("scale", [7.5, 1.0])
    def test_each_is_the_one_made_alone(self, model, scale):
        rows = mixed(model)
        together, alone = (made(sweep_of(model, size, scale), rows) for size in (16, 1))
        untouched = made(sweep_of(model, 16, scale), [Row(row.text, row.seed) for row in rows])
        for row, *latents in zip(rows, together, alone, untouched, strict=True):
            assert distance(latents[0], latents[1]) < TOLERANCE
            assert (distance(latents[0], latents[2]) > VISIBLE) is bool(row.changes)

    @pytest.mark.parametrize("scale", [7.5, 1.0])
    def test_one_window_is_what_the_published_way_makes(self, model, scale):
        found = made(sweep_of(model, 16, scale), [Row(BASE, 5, (swap(model, layer),)) for layer in STRONG])
        source = tiny.draw(model.pipe, BASE, seed=5, guidance_scale=scale, **SMALL)[0]
        for layer, latent in zip(STRONG, found, strict=True):
            with reading(model, layer, GOAL, guided=scale > 1):
                (expected,) = tiny.draw(model.pipe, BASE, seed=5, guidance_scale=scale, **SMALL)
            assert distance(latent, expected) < TOLERANCE
            assert distance(expected, source) > VISIBLE

    @pytest.mark.parametrize("scale", [7.5, 1.0])
    def test_with_no_layer_swapped_it_is_the_source_and_with_all_the_target_to_the_bit(self, model, scale):
        every = list(model.sites.layers)
        sweep = sweep_of(model, 8, scale)
        paths = model.sites.where(layer=every, text_only=True).paths
        own, other = (ContextSwap(paths, sweep.conditions(text).context) for text in (BASE, GOAL))
        window = Row(BASE, 3, (swap(model, 1),))
        source, target, one = made(sweep, [Row(BASE, 3), Row(GOAL, 3), window])
        # in the same slots, because sums may be rounded by the slot where several threads share a batch
        none_swapped, all_swapped, again = made(sweep, [Row(BASE, 3, (own,)), Row(BASE, 3, (other,)), window])
        assert torch.equal(none_swapped, source)
        assert torch.equal(all_swapped, target)
        assert torch.equal(again, one)
        assert distance(one, source) > VISIBLE
        assert distance(one, target) > VISIBLE

    def test_an_unchanged_row_does_not_notice_its_neighbours_changes(self, model):
        rows = mixed(model)
        unchanged = [Row(row.text, row.seed) for row in rows]
        together, plain = (made(sweep_of(model), each) for each in (rows, unchanged))
        assert torch.equal(together[1], plain[1])

    def test_each_keeps_the_order_of_its_own_changes(self, graph):
        first, second = mask(graph, strength=0.5, fill=3.0), mask(graph, strength=0.5, fill=-3.0)
        rows = [Row(BASE, 0, (first, second)), Row(BASE, 0, (second, first))]
        found = made(sweep_of(graph), rows)
        for row, latent in zip(rows, found, strict=True):
            with graph.apply(*row.changes):
                assert distance(latent, tiny.draw(graph.pipe, BASE, **SMALL)[0]) < TOLERANCE
        assert distance(found[0], found[1]) > VISIBLE

    def test_a_change_given_twice_acts_twice(self, graph):
        half = mask(graph, strength=0.5)
        once, twice = made(sweep_of(graph), [Row(BASE, 0, (half,)), Row(BASE, 0, (half, half))])
        with graph.apply(half, half):
            assert distance(twice, tiny.draw(graph.pipe, BASE, **SMALL)[0]) < TOLERANCE
        assert distance(once, twice) > VISIBLE

    def test_changes_must_be_given_for_as_many_images_as_are_made(self, graph, pipe):
        message = "changes were given for 3 images, and the pipeline makes 2; give one for each"
        with pytest.raises(InvalidInput, match=message), graph.apply_each([(mask(graph),), (), ()]):
            tiny.draw(pipe, [BASE, GOAL], **SMALL)
        assert tiny.hooks(pipe) == []

    def test_a_change_that_fits_no_step_is_an_error_though_others_acted(self, graph, pipe):
        never = swap(graph, 3, steps=(0.3, 0.4))
        message = r"no denoising step lies in the part of the schedule of ContextSwap\(.*steps=\(0.3, 0.4\)"
        with pytest.raises(SiteNeverRan, match=message), graph.apply_each([(swap(graph, 3),), (never,)]):
            tiny.draw(pipe, [BASE, GOAL], **SMALL)


class TestBatches:
    def test_rows_keep_their_order_and_batches_their_size(self, graph):
        rows = [Row(BASE, seed) for seed in range(5)]
        with tiny.counted(graph.denoiser) as calls:
            found = [(batch, len(latents)) for batch, latents in sweep_of(graph, 2, 1.0).run(rows)]
        assert found == [(rows[:2], 2), (rows[2:4], 2), (rows[4:], 1)]
        assert calls == [2, 2, 2, 2, 1, 1]

    def test_shared_rows_stand_in_front_of_every_batch_and_are_not_given_back(self, graph):
        rows, shared = [Row(BASE, seed) for seed in range(3)], [Row(GOAL, 7)]
        entered = []

        @contextmanager
        def enter(batch):
            entered.append(list(batch))
            yield

        found = made(sweep_of(graph, 3, 1.0), rows, context=enter, shared_rows=shared)
        assert entered == [[*shared, *rows[:2]], [*shared, *rows[2:]]]
        assert distance(found, made(sweep_of(graph, 3, 1.0), rows)) < TOLERANCE

    def test_a_batch_of_one_still_has_its_shared_rows(self, graph):
        with tiny.counted(graph.denoiser) as calls:
            made(sweep_of(graph, 1, 1.0), [Row(BASE, 0), Row(BASE, 1)], shared_rows=[Row(GOAL, 0)])
        assert calls == [2] * 4

    def test_pictures_are_those_of_the_pipeline(self, graph, pipe):
        rows = [Row(BASE, 0), Row(GOAL, 1)]
        expected = pipe([BASE, GOAL], generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)], **SMALL).images
        for space in ("latent", "image"):
            sweep = sweep_of(graph, space=space)
            (found,) = [sweep.images(latents) for _, latents in sweep.run(rows)]
            for mine, pipes in zip(found, expected, strict=True):
                assert mine.size == (32, 32)
                assert np.abs(np.asarray(mine, dtype=int) - np.asarray(pipes, dtype=int)).max() <= 1

    def test_the_pipelines_options_are_those_given(self, fresh):
        """On a pipeline of its own: `clip_skip` leaves hooks of transformers, and diffusers looks for an old attribute."""
        vars(fresh.text_encoder)["text_model"] = fresh.text_encoder
        options = {"negative_prompt": "a green square", "clip_skip": 1, "guidance_scale": 3.0, "num_inference_steps": 3}
        sweep = Sweep(HookGraph(fresh), [BASE], SMALL | options, batch_size=2, space="latent")
        (found,) = made(sweep, [Row(BASE, 4)])

        def drawn(**options) -> torch.Tensor:
            noise = torch.Generator().manual_seed(4)
            return fresh(BASE, generator=noise, output_type="latent", **(SMALL | options)).images[0]

        assert distance(found, drawn(**options)) < TOLERANCE
        for name in options:
            assert distance(drawn(**{other: value for other, value in options.items() if other != name}), found) > VISIBLE

    def test_further_contexts_are_texts_by_name(self, graph):
        sweep = Sweep(graph, [BASE], SMALL, batch_size=2, space="latent", contexts={"mine": graph.text.conditions([GOAL])})
        found = made(sweep, [Row("mine", 0), Row(BASE, 0)])
        close(found, made(sweep_of(graph, 2), [Row(GOAL, 0), Row(BASE, 0)]))
        assert torch.equal(sweep.conditions("mine").context, graph.text.encode([GOAL]))

    def test_what_a_sweep_sets_itself_is_refused(self, graph):
        with pytest.raises(InvalidInput, match="num_images_per_prompt is set for each image here; give only options that all images"):
            sweep_of(graph, num_images_per_prompt=2)
        with pytest.raises(InvalidInput, match="batch_size=0 is no number of images; give 1 or more, or None to fit the memory"):
            sweep_of(graph, 0)


class TestMemory:
    @pytest.fixture
    def limited(self, graph):
        """Makes the denoiser fail above a number of rows, as a full accelerator does; gives the batch sizes that were tried."""
        with ExitStack() as stack:

            def limit(rows: int, error: BaseException = FULL) -> list[int]:
                tried = []

                def refuse(_module, args):
                    tried.append(len(args[0]))
                    if len(args[0]) > rows:
                        raise error

                stack.callback(graph.denoiser.register_forward_pre_hook(refuse).remove)
                return tried

            yield limit

    @pytest.mark.parametrize(
        "error",
        [FULL, MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
        ids=["cuda", "python", "cpu"],
    )
    def test_a_batch_that_does_not_fit_is_halved_and_made_again(self, graph, pipe, limited, error):
        rows = [Row(BASE, seed, (swap(graph, seed),)) for seed in range(5)]
        expected = made(sweep_of(graph, 8, 1.0), rows)
        tried = limited(2, error)
        sweep = sweep_of(graph, 8, 1.0)
        with pytest.warns(UserWarning, match="out of memory; going on with . images at a time") as caught:
            found = made(sweep, rows)
        assert [str(each.message).split("with ")[1][0] for each in caught] == ["4", "2"]
        assert tried == [5, 4, 2, 2, 2, 2, 1, 1]
        assert (sweep.fits, sweep.batch_size) == (2, 8)
        assert distance(found, expected) < TOLERANCE

    def test_a_single_picture_that_does_not_fit_is_an_error(self, graph, limited):
        tried = limited(0)
        with pytest.warns(UserWarning, match="going on with 1 image at"), pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            made(sweep_of(graph, 2, 1.0), [Row(BASE, 0, (mask(graph),)), Row(BASE, 1)])
        assert tried == [2, 1]

    def test_other_errors_are_not_taken_for_a_full_memory(self, graph, limited):
        tried = limited(0, RuntimeError("shapes differ"))
        with pytest.raises(RuntimeError, match="shapes differ"):
            made(sweep_of(graph, 4, 1.0), [Row(BASE, 0), Row(BASE, 1)])
        assert tried == [2]

    @pytest.mark.parametrize(
        ("free", "expected"),
        [
            (0, lambda row: 1),
            (19, lambda row: 19 // 4),  # a guided image takes two rows, and half of the memory stays free
            (41, lambda row: 41 // 4),
            (10**6, lambda row: LARGEST_BATCH),
        ],
    )
    def test_the_default_batch_fits_half_of_the_free_memory(self, graph, monkeypatch, free, expected):
        row = bytes_an_image(graph, 32, 32)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * row))
        assert fitted_batch_size(graph, {}) == expected(row)
        assert Sweep(graph, [BASE], {}).batch_size == expected(row)

    def test_larger_pictures_come_in_smaller_batches(self, graph, monkeypatch):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * bytes_an_image(graph, 64, 64)))
        sizes = [fitted_batch_size(graph, {"height": side, "width": side}) for side in (32, 64, 128)]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == 3

    def test_a_rows_bytes_are_all_outputs_of_a_real_run(self, fresh):
        """Counted by hooks on the modules without children, in a run of one row; only the text is longer there."""
        graph, unet = HookGraph(fresh), fresh.unet.float()  # whose embeddings of steps are float32 in every format
        total = 0

        def add(_module, _args, output):
            nonlocal total
            total += output.nbytes

        handles = [each.register_forward_hook(add) for each in unet.modules() if not any(each.children())]
        with torch.no_grad():
            unet(torch.zeros(1, 4, 8, 16), 1, encoder_hidden_states=torch.zeros(1, 7, 96))
        for handle in handles:
            handle.remove()
        assert bytes_an_image(graph, 32, 64) == total
        assert bytes_an_image(graph, 64, 64) > 3 * bytes_an_image(graph, 32, 32) == 3 * bytes_an_image(graph)
