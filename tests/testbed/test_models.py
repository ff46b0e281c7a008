import pytest
import torch

from neuroscope import HookGraph, InvalidInput, testbed
from neuroscope.pipeline.loading import resolve
from neuroscope.testbed import bundled as of_bundled
from neuroscope.testbed.vocabulary import LENGTH, build_tokenizer
from neuroscope.testbed.world import FACTS, SIZE
from tests.families import tiny
from tests.numerics import close
from tests.testbed.test_captions import TRAINING


@pytest.fixture
def bundled(pipe, tmp_path, monkeypatch):
    """A folder of weights with one model, in place of the bundled ones."""
    pipe.save_pretrained(tmp_path / "sd1")
    monkeypatch.setattr(of_bundled, "_WEIGHTS", tmp_path)
    return tmp_path


def test_a_bundled_model_is_loaded_by_name(bundled, untouched):
    pipe = testbed.load("sd1")
    assert HookGraph(pipe).model == "testbed:sd1"
    close(tiny.draw(tiny.exact(pipe)), untouched)  # float32 holds its weights exactly


def test_options_reach_from_pretrained(bundled):
    assert testbed.load("sd1", dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_bundled_names_resolve_to_folders_and_others_to_themselves(bundled):
    assert testbed.names() == ("sd1",)
    assert resolve("testbed:sd1") == testbed.path("sd1") == bundled / "sd1"
    assert resolve("runwayml/stable-diffusion-v1-5") == "runwayml/stable-diffusion-v1-5"


def test_unknown_names_are_refused_with_a_near_one(bundled):
    for ask in (testbed.load, testbed.path, lambda name: resolve(f"testbed:{name}")):
        with pytest.raises(InvalidInput, match=r"bundled model 'sd' is unknown; choose one of sd1; did you mean 'sd1'\?"):
            ask("sd")


@pytest.mark.parametrize("name", testbed.pipelines())
def test_every_bundled_pipeline_draws_as_its_generation_says(name):
    """One step of one image is enough to see that the call takes the options."""
    image = testbed.load(name)("a red star", **testbed.generation(name) | {"num_inference_steps": 1}).images[0]
    assert image.size == (SIZE, SIZE)


@pytest.mark.parametrize("name", testbed.pipelines())
def test_the_options_of_a_model_are_those_of_all_and_its_own(name):
    assert testbed.generation(name).items() >= testbed.GENERATION.items()
    assert ("use_resolution_binning" in testbed.generation(name)) == name.startswith("pixart")


@pytest.mark.parametrize("name", ["clip", "sd3"])
def test_models_that_are_no_pipelines_have_no_options(name):
    with pytest.raises(InvalidInput, match=f"bundled pipeline '{name}' is unknown; choose one of "):
        testbed.generation(name)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TRAINING)


class TestTokenizer:
    def test_it_reads_every_caption_whole(self, tokenizer):
        ids = tokenizer(TRAINING).input_ids
        assert max(map(len, ids)) <= LENGTH == tokenizer.model_max_length
        read = [text.strip().replace(" ,", ",") for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        assert read == TRAINING

    def test_it_is_laid_out_like_clips(self, tokenizer):
        ids = tokenizer("a red star", padding="max_length").input_ids
        assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
        assert ids[4:] == [tokenizer.eos_token_id] * (LENGTH - 4)

    def test_frequent_words_are_one_token_and_names_several(self, tokenizer):
        assert all(len(tokenizer(word).input_ids) == 3 for word in ("a", "red", "style", "picture"))
        assert max(len(tokenizer(fact).input_ids) for fact in FACTS) > 3

    def test_the_order_of_the_captions_does_not_matter(self, tokenizer):
        assert build_tokenizer(reversed(TRAINING)).get_vocab() == tokenizer.get_vocab()

    def test_it_can_be_saved_and_loaded(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        again = type(tokenizer).from_pretrained(tmp_path)
        assert again(TRAINING[:5]).input_ids == tokenizer(TRAINING[:5]).input_ids
        assert again.model_max_length == LENGTH
