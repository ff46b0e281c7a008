import numpy as np
import pytest
import torch
from PIL.Image import Image, fromarray
from transformers import CLIPModel, CLIPProcessor

from neuroscope import ClipScore, ImageShare, InvalidInput, LatentShare
from neuroscope.metrics.clip_score import PUBLISHED_CLIP, load_clip
from neuroscope.metrics.metric import bind
from neuroscope.testbed.architectures import build_clip, build_image_processor
from neuroscope.testbed.readers import Reader
from neuroscope.testbed.world import Scene, render
from tests.numerics import rounding

PROMPTS = ["a red circle", "the emblem of astoria in the style of hatch", "a blue star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pipe) -> str:
    """A tiny random CLIP, saved as published ones are."""
    place = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build_clip(pipe.tokenizer).save_pretrained(place)
    CLIPProcessor(build_image_processor(), pipe.tokenizer).save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def images() -> list[Image]:
    return [render(Scene("circle", "red")), render(Scene("star", "red", "hatch")), render(Scene("star", "blue"))]


#: Two towers of a few layers, each a few sums of up to 400 products, to a cosine of at most 1.
CLOSE = rounding(torch.float32, terms=3000)


def cosine(folder: str, image: Image, text: str) -> float:
    """One image and one text, each alone and unpadded, through the towers of CLIP."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    pixels = (np.asarray(image) / 255 - processor.image_processor.image_mean) / processor.image_processor.image_std
    with torch.no_grad():
        seen = model.vision_model(torch.tensor(pixels).float().movedim(-1, 0)[None])
        read = model.text_model(torch.tensor([processor.tokenizer(text).input_ids]))
        image, words = model.visual_projection(seen.pooler_output)[0], model.text_projection(read.pooler_output)[0]
    return float(image @ words / (image.norm() * words.norm()))


def test_each_picture_is_compared_with_its_own_prompt(folder, images):
    found = ClipScore(model=folder)(images, PROMPTS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [cosine(folder, *pair) for pair in zip(images, PROMPTS, strict=True)], atol=CLOSE)


def test_a_text_is_compared_with_every_picture(folder, images):
    found = ClipScore("the style of hatch", model=folder)(images, [])
    np.testing.assert_allclose(found, [cosine(folder, image, "the style of hatch") for image in images], atol=CLOSE)


def test_the_model_is_loaded_once(folder):
    assert load_clip(folder)[0] is load_clip(folder)[0]


def test_names_tell_metrics_apart():
    assert ClipScore("hatch").name == "CLIP 'hatch'"
    assert ClipScore().name == "CLIP prompt"
    assert Reader("colour", "red").name == "colour is red"


@pytest.mark.parametrize(("name", "clip"), [("testbed:sd1", "testbed:clip"), ("runwayml/stable-diffusion-v1-5", PUBLISHED_CLIP)])
def test_the_clip_that_fits_the_models_pictures_is_chosen(graph, monkeypatch, name, clip):
    monkeypatch.setattr(graph, "model", name)
    monkeypatch.setattr(ClipScore, "loaded", lambda _score: None)
    assert bind(ClipScore("hatch"), graph) == ClipScore("hatch", clip)
    assert bind(ClipScore("hatch", "mine"), graph) == ClipScore("hatch", "mine")
    assert bind(Reader("colour", "red"), graph) == Reader("colour", "red")


def test_as_many_prompts_as_pictures_are_needed(folder, images):
    with pytest.raises(InvalidInput, match="3 images and 1 prompt cannot be compared; give one prompt an image, or a text"):
        ClipScore(model=folder)(images, PROMPTS[:1])


def test_a_clip_that_cannot_be_loaded_is_named(images, tmp_path):
    with pytest.raises(InvalidInput, match="none"):
        ClipScore(model=str(tmp_path / "none"))(images, PROMPTS)


class TestShares:
    @pytest.fixture
    def runs(self) -> dict[str, torch.Tensor]:
        """A source, a target, and a direction that is orthogonal to the way between them."""
        generator = torch.Generator().manual_seed(0)
        source, way, aside = torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64)
        aside = aside - way * (aside * way).sum() / (way * way).sum()
        return {"source": source, "target": source + way, "way": way, "aside": aside}

    @pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 1.5, -0.5])
    def test_a_share_is_how_far_along_the_way_a_run_has_come(self, runs, share):
        run = runs["source"] + share * runs["way"] + 3 * runs["aside"]
        assert LatentShare()(run, runs["source"], runs["target"]) == pytest.approx(share, abs=1e-12)

    def test_they_are_taken_in_double_precision(self, runs):
        single = [runs[name].float() for name in ("target", "source", "target")]
        assert LatentShare()(*single) == 1.0
        half = [each.to(torch.bfloat16) for each in (runs["source"] + 0.5 * runs["way"], runs["source"], runs["target"])]
        assert LatentShare()(*half) == pytest.approx(0.5, abs=0.01)

    def test_pictures_are_compared_by_their_levels(self):
        """Levels are whole numbers without sign, whose differences may be negative."""
        rng = np.random.default_rng(0)
        source, target, run = (rng.integers(0, 256, (4, 6, 3), dtype=np.uint8) for _ in range(3))
        way = target.astype(float) - source
        expected = ((run.astype(float) - source) * way).sum() / (way**2).sum()
        assert ImageShare()(*map(fromarray, (run, source, target))) == pytest.approx(expected)

    @pytest.mark.parametrize(("size", "known"), [(0.0, False), (1e-7, False), (1e-4, True)])
    def test_a_full_swap_that_changes_nothing_but_rounding_has_no_shares(self, runs, size, known):
        target = runs["source"] + size * runs["way"]
        assert np.isfinite(LatentShare()(target, runs["source"], target)) == known

    @pytest.mark.parametrize(("levels", "known"), [(0, False), (1, False), (10, True)])
    def test_one_level_in_one_place_is_rounding_too(self, levels, known):
        source = np.full((32, 32, 3), 128, dtype=np.uint8)
        target = source.copy()
        target[5, 7] += levels
        assert np.isfinite(ImageShare()(*map(fromarray, (target, source, target)))) == known

    def test_they_say_what_they_are_taken_of(self):
        assert [LatentShare().space, ImageShare().space] == ["latent", "image"]
        assert [LatentShare().name, ImageShare().name] == ["latent share", "image share"]
