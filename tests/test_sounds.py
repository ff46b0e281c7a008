"""Sounds: samples, spectrograms, WAV files, and CLAP's score of them."""

import copy
import io
import pickle
import wave

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ClapFeatureExtractor, ClapModel, ClapProcessor

import neuroscope as ns
from neuroscope.core.sounds import Sound
from neuroscope.evaluation import generate
from neuroscope.metrics.metric import bind
from neuroscope.report import plots
from neuroscope.testbed.construction.builders.audio import build_clap, build_letters
from tests.families import tiny

RATE = 16000


def tone(frequency: float, seconds: float = 0.5, level: float = 0.5) -> Sound:
    return Sound.of(level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE), RATE)


@pytest.fixture(scope="module")
def graph() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["audioldm2"]())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny random CLAP, saved as published ones are."""
    place, letters = tmp_path_factory.mktemp("clap"), build_letters()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build_clap(letters).save_pretrained(place)
    extractor = ClapFeatureExtractor(feature_size=16, sampling_rate=RATE, max_length_s=1, frequency_max=8000, truncation="rand_trunc")
    ClapProcessor(extractor, letters).save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("frequency", [500.0, 2000.0, 6000.0])
def test_a_tone_is_a_line_at_its_frequency(frequency):
    """From 0 at the bottom to half of the rate at the top, as bright as it is loud."""
    shades = np.asarray(tone(frequency))[..., 0].astype(float)
    assert shades.shape == (128, 256)
    row = int(shades.mean(axis=1).argmax())
    assert abs((127.5 - row) / 128 * RATE / 2 - frequency) < RATE / 2 * 0.05
    louder = np.asarray(tone(frequency, level=1.0))[..., 0].astype(float)
    step = louder[row, 100] - shades[row, 100]
    assert abs(step - 255 * 20 * np.log10(2) / 80) <= 3  # a row mixes with its neighbours


@pytest.mark.parametrize("samples", [np.zeros(2000), np.zeros((2, 1)), np.ones((2, 7))])
def test_silent_and_short_sounds_have_a_spectrogram(samples):
    found = Sound.of(samples, RATE)
    assert found.size == (256, 128)
    assert found.samples.shape == np.atleast_2d(samples).shape
    assert samples.any() or not np.asarray(found).any()


def test_a_wav_file_holds_the_samples():
    left, right = tone(500.0).samples[0], tone(900.0, level=2.0).samples[0]
    with wave.open(io.BytesIO(Sound.of(np.stack([left, right]), RATE).wav())) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, RATE, 8000)
        found = np.frombuffer(file.readframes(8000), "<i2").reshape(-1, 2).T / 32767
    np.testing.assert_allclose(found[0], left, atol=1 / 32767)
    np.testing.assert_allclose(found[1], right.clip(-1, 1), atol=1 / 32767)


def test_copies_and_other_processes_have_the_samples():
    made = tone(500.0)
    made.info["prompt"] = "a tone"
    for found in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(found, Sound)
        assert found.rate == RATE
        assert np.array_equal(found.samples, made.samples)
        assert found.tobytes() == made.tobytes()
        assert found.info["prompt"] == "a tone"
    assert made.seconds == 0.5


def test_another_rate_keeps_the_tone():
    found = tone(500.0).at(48000)
    assert found.shape == (24000,)
    np.testing.assert_allclose(found[3000:-3000], 0.5 * np.sin(2 * np.pi * 500 * np.arange(24000) / 48000)[3000:-3000], atol=5e-3)


def test_generate_makes_the_pipelines_own_sounds(graph):
    """As the pipeline's call gives them, cut to the seconds that are asked for."""
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "audio_length_in_s": 0.02}
    (made,) = generate(graph, None, [tiny.PROMPT], [3], **options)
    expected = graph.pipe(tiny.PROMPT, generator=[torch.Generator().manual_seed(3)], **options).audios
    assert (made.rate, made.seconds) == (RATE, 0.02)
    np.testing.assert_allclose(made.samples, expected, atol=1e-6)
    assert made.info["prompt"] == tiny.PROMPT


def test_contact_sheets_show_spectrograms(tmp_path):
    shown = plots.images({"a tone": [tone(500.0), tone(2000.0)]}, ["untouched", "masked"])
    shown.figure.savefig(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 100


class TestClapScore:
    def test_it_is_the_cosine_of_claps_towers(self, folder):
        sounds, texts = [tone(500.0), tone(2000.0)], ["a low tone", "a high tone"]
        found = ns.ClapScore(model=folder)(sounds, texts)
        model, processor = ClapModel.from_pretrained(folder).eval(), ClapProcessor.from_pretrained(folder)
        for score, sound, text in zip(found, sounds, texts, strict=True):
            features = processor.feature_extractor(sound.samples[0], sampling_rate=RATE, return_tensors="pt").input_features
            with torch.no_grad():
                heard = model.get_audio_features(features).pooler_output[0]
                read = model.get_text_features(torch.tensor([processor.tokenizer(text).input_ids])).pooler_output[0]
            assert abs(score - float(heard @ read / (heard.norm() * read.norm()))) < 1e-5

    def test_long_sounds_have_one_score(self, folder):
        """CLAP's own code takes a random part of them."""
        long = Sound.of(np.random.default_rng(0).normal(size=5 * RATE), RATE)
        scores = [ns.ClapScore("noise", folder)([long], [])[0] for _ in range(3)]
        assert len(set(scores)) == 1

    def test_it_is_bound_as_it_is(self, folder, graph):
        assert bind(ns.ClapScore("noise", folder), graph) == ns.ClapScore("noise", folder)
        assert ns.ClapScore("noise").name == "CLAP 'noise'"
        assert ns.ClapScore().name == "CLAP prompt"

    @pytest.mark.parametrize(
        ("ask", "message"),
        [
            (lambda folder: ns.ClapScore(""), "text"),
            (lambda folder: ns.ClapScore("noise", folder)([Image.new("RGB", (4, 4))], []), "CLAP scores sounds, and this is an image"),
            (lambda folder: ns.ClapScore(model=folder)([tone(500.0)], []), "1 sound and 0 prompts cannot be compared"),
            (lambda folder: ns.ClapScore("noise", folder + "/none")([tone(500.0)], []), "the CLAP model .* cannot be loaded"),
        ],
    )
    def test_bad_input_is_refused(self, folder, ask, message):
        with pytest.raises(ns.InvalidInput, match=message):
            ask(folder)
