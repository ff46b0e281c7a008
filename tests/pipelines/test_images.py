"""An image that a pipeline is given goes to every row, at any batch size, as the pipeline's own call gives it to one prompt."""

import numpy as np
import pytest
import torch
from diffusers import MultiAdapter, StableDiffusionAdapterPipeline, StableDiffusionImg2ImgPipeline

from neuroscope import Concept, InvalidInput, record
from neuroscope.core.errors import counted
from neuroscope.generation.batches import Row, Sweep
from neuroscope.generation.image_inputs import image_arguments, spread_images
from tests.pipelines import parts
from tests.pipelines.build import PIPELINES
from tests.pipelines.example import NEGATIVE, PROMPTS
from tests.pipelines.test_rows import RIGHT, built, graph_of, middle

WITH_IMAGES = [name for name in RIGHT if image_arguments(PIPELINES[name].arguments())]
SHORT = {"num_inference_steps": 1}
ROWS = [Row(PROMPTS[0], 0), Row(PROMPTS[1], 1), Row(PROMPTS[0], 2)]


def shared_options(name, guided):
    """Options that all rows share: each image given once."""
    example = PIPELINES[name]
    options = example.options(1, guided, listed=False) | ({"negative_prompt": NEGATIVE} if example.negative else {}) | SHORT
    del options["output_type"]
    return options


def alone(name, row, guided):
    """The pipeline's own call for one prompt."""
    noise = [torch.Generator().manual_seed(row.seed)]
    return torch.as_tensor(PIPELINES[name].run(built(name), 1, guided, prompt=[row.text], generator=noise, **SHORT).images[0])


def test_the_table_has_the_pipelines_that_take_images():
    assert len(WITH_IMAGES) >= 20


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_every_row_is_the_pipelines_own_call(name):
    guided = True
    expected = [alone(name, row, guided) for row in ROWS]
    spread = max(float(each.abs().max()) for each in expected)
    for batch_size in (1, 2, 3):
        sweep = Sweep(graph_of(name), PROMPTS, shared_options(name, guided), batch_size=batch_size, space="latent")
        made = [latents for _, batch in sweep.run(ROWS[:batch_size]) for latents in batch]
        for row, each in enumerate(made):
            torch.testing.assert_close(each, expected[row], rtol=0, atol=1e-3 * spread)


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_records_do_not_depend_on_the_batch_size(name):
    graph = graph_of(name)
    site = middle(graph, "heads")
    concept = Concept("none", present=list(PROMPTS), absent=[f"not {prompt}" for prompt in PROMPTS])
    options = shared_options(name, True) | {"output_type": PIPELINES[name].arguments()["output_type"]}
    together, single = (record(graph, concept, [site], batch_size=size, quiet=True, **options) for size in (2, 1))
    torch.testing.assert_close(together.mean("present")[site.path], single.mean("present")[site.path], rtol=1e-3, atol=1e-4)


class TestSpread:
    """Arguments are recognised by their names and by what they hold; what is no image is passed on as it is."""

    @pytest.fixture
    def plain(self):
        return object.__new__(StableDiffusionImg2ImgPipeline)

    @pytest.mark.parametrize("name", ["image", "mask_image", "original_image", "control_image", "masked_image_latents"])
    def test_every_argument_that_holds_an_image_is_given_to_every_row(self, plain, name):
        image = parts.image()
        assert spread_images(plain, {name: image}, 3) == {name: [image] * 3}

    @pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 8, 8)])
    @pytest.mark.parametrize("array", [torch.zeros, np.zeros])
    def test_a_tensor_or_array_of_one_image_becomes_a_batch(self, plain, array, shape):
        assert spread_images(plain, {"image": array(shape)}, 3)["image"].shape == (3, 3, 8, 8)

    @pytest.mark.parametrize(("array", "shape"), [(torch.zeros, (3, 1, 8, 8)), (np.zeros, (3, 8, 8, 1))])
    def test_a_mask_without_channels_becomes_a_batch(self, plain, array, shape):
        assert spread_images(plain, {"mask_image": array((8, 8))}, 3)["mask_image"].shape == shape

    def test_a_list_of_one_is_that_one(self, plain):
        assert spread_images(plain, {"image": [parts.image()]}, 2) == {"image": [parts.image()] * 2}

    def test_what_is_no_image_stays(self, plain):
        options = {"image_guidance_scale": 1.5, "num_images_per_prompt": 1, "strength": 0.5, "image": None, "noise_level": 20}
        assert spread_images(plain, options, 3) == options

    def test_a_pipeline_that_crops_its_image_repeats_it_itself(self, plain):
        options = {"image": parts.image(), "mask_image": parts.mask_image(), "padding_mask_crop": 8}
        assert spread_images(plain, options, 3) == options

    @pytest.mark.parametrize(
        "several", [[parts.image()] * 2, torch.zeros(2, 3, 8, 8), np.zeros((2, 8, 8, 3))], ids=["list", "tensor", "array"]
    )
    def test_several_images_for_rows_that_share_one_are_refused(self, plain, several):
        with pytest.raises(
            InvalidInput, match="original_image holds 2 images, and every image that is made is given the same one; give one"
        ):
            spread_images(plain, {"original_image": several}, 4)

    @pytest.mark.parametrize("given", [parts.image(), [parts.image()] * 3], ids=["one", "three"])
    def test_another_number_of_images_than_nets_is_refused(self, given):
        count = len(given) if isinstance(given, list) else 1
        message = f"image holds {counted(count, 'image')}, and the pipeline has 2 nets; give a list with one image for each net"
        with pytest.raises(InvalidInput, match=message):
            spread_images(built("StableDiffusionControlNetPipeline (two nets)"), {"image": given}, 2)

    def test_each_of_several_adapters_has_an_image_for_every_row(self):
        pipe = object.__new__(StableDiffusionAdapterPipeline)
        pipe.adapter = MultiAdapter([parts.adapter(), parts.adapter()])
        first, second = parts.image(), parts.image(shift=8)
        assert spread_images(pipe, {"image": [first, second]}, 3) == {"image": [[first] * 3, [second] * 3]}

    @pytest.mark.parametrize("name", ["ip_adapter_image", "ip_adapter_image_embeds"])
    def test_an_ip_adapters_image_is_refused(self, plain, name):
        with pytest.raises(InvalidInput, match=f"{name} is for an IP-Adapter, whose image tokens pass beside .*; leave it out"):
            spread_images(plain, {name: [torch.zeros(1, 1, 8)]}, 2)
