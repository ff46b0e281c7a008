import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.testbed.loop import Schedule
from benchmarks.testbed.t5 import encode, train_t5
from neuroscope import testbed
from neuroscope.testbed.construction.builders.encoders import t5_encoder, t5_tokenizer
from tests.numerics import close

SCHEDULE = Schedule(steps=30, batch=16, rate=3e-3, warmup=2, averaging=0.5, checkpoint_every=30)


@pytest.fixture(scope="module")
def teacher() -> tuple[CLIPModel, CLIPTokenizer]:
    path = testbed.path("clip")
    return CLIPModel.from_pretrained(path, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(path)


def test_an_encoder_learns_what_clip_says_of_captions(teacher, tmp_path):
    train_t5(t5_tokenizer(), *teacher, tmp_path, SCHEDULE, quiet=True)
    losses = [float(line.split(",")[1]) for line in (tmp_path / "losses.csv").read_text().split()[1:]]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_states_do_not_depend_on_padding_and_the_mask_says_where_it_is():
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    encoder = t5_encoder(tokenizer, 32).eval()
    with torch.no_grad():
        alone, both = (encode(encoder, tokenizer, prompts) for prompts in (["a red star"], ["a red star", "a picture of a blue ring"]))
    assert both.mask.sum(dim=1).tolist() == [4, 7]  # and the end of the text
    close(both.states[0, :4], alone.states[0], terms=100)
