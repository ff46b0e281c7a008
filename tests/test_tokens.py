import numpy as np
import pytest

from neuroscope import InvalidInput
from neuroscope.tokens import select_tokens, warn_of_lost_words
from tests.families import tiny

TOKENIZERS = [pytest.param(build, id=name) for name, build in tiny.PIPELINES.items()]
LONG = "the emblem of astoria and the emblem of belmora and the emblem of cestria and the emblem of dorvane"


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return request.param().tokenizer


def position_after(tokenizer, prefix: str) -> int:
    """The position of a prompt's next token, had the prompt only its first words."""
    return len(tokenizer(prefix).input_ids) - 1


def chosen(tokenizer, prompt: str, token: str, subject: str | None = None) -> list[int]:
    (row,) = select_tokens(tokenizer, [prompt], token, subject)
    return np.flatnonzero(row).tolist()


@pytest.mark.parametrize(
    ("prompt", "subject", "until"),
    [
        ("a red circle", "red", "a red"),
        ("a red circle", "RED", "a red"),
        ("A Red circle", "red", "A Red"),
        ("a red circle", "green", "a red circle"),  # not there: the last word
        ("a red circle", None, "a red circle"),
        ("a red circle.", None, "a red circle"),  # punctuation is no word
        ("the emblem of astoria in hatch style", "the emblem of astoria", "the emblem of astoria"),  # several tokens
        ("red red circle", "red", "red red"),  # the last occurrence
        ("  a   red  circle", "red", "a red"),
        ("a café in the style of plain", "café", "a café"),
    ],
)
def test_subject_is_the_last_token_of_the_word(tokenizer, prompt, subject, until):
    assert chosen(tokenizer, prompt, "subject", subject) == [position_after(tokenizer, until) - 1]


def test_a_subject_is_a_word_and_not_a_part_of_one(tokenizer):
    until = "a red ring"
    assert chosen(tokenizer, "a red ring in spring", "subject", "ring") == [position_after(tokenizer, until) - 1]


@pytest.mark.parametrize("prompt", ["a red circle", "the emblem of astoria", ""])
def test_eos_is_the_first_end_of_text_whatever_pads(tokenizer, prompt):
    (position,) = chosen(tokenizer, prompt, "eos")
    assert position == position_after(tokenizer, prompt)
    ids = tokenizer(prompt, padding="max_length").input_ids
    assert ids[position] == tokenizer.eos_token_id
    assert set(ids[position + 1 :]) == {tokenizer.pad_token_id}


def test_last_is_the_final_position_and_all_is_every_position(tokenizer):
    assert chosen(tokenizer, "a red circle", "last") == [tokenizer.model_max_length - 1]
    assert chosen(tokenizer, "a red circle", "all") == list(range(tokenizer.model_max_length))


def test_each_prompt_has_positions_of_its_own(tokenizer):
    prompts = ["a red circle", "the emblem of astoria in hatch style", ""]
    rows = select_tokens(tokenizer, prompts, "eos")
    assert rows.argmax(axis=1).tolist() == [position_after(tokenizer, prompt) for prompt in prompts]
    assert rows.sum(axis=1).tolist() == [1, 1, 1]


def test_without_any_word_the_subject_is_the_end_of_text(tokenizer):
    assert chosen(tokenizer, "...", "subject") == chosen(tokenizer, "...", "eos")
    assert chosen(tokenizer, "", "subject") == chosen(tokenizer, "", "eos") == [1]


def test_a_prompt_that_fills_the_length_still_ends_with_the_end_of_text(tokenizer):
    assert chosen(tokenizer, LONG, "eos") == chosen(tokenizer, LONG, "last") == [tokenizer.model_max_length - 1]


def test_a_prompt_beyond_the_length_warns_of_the_words_it_loses(tokenizer):
    with pytest.warns(UserWarning, match=r"is longer than the model's 24 tokens; it loses '(?P<lost>.+)'") as caught:
        warn_of_lost_words(tokenizer, ["a red circle", LONG])
    assert len(caught) == 1
    lost = str(caught[0].message).split("it loses '")[1].removesuffix("'")
    assert LONG.endswith(lost)
    read = tokenizer(LONG, truncation=True, max_length=tokenizer.model_max_length).input_ids
    assert tokenizer.decode(read, skip_special_tokens=True).replace(" ", "") == LONG.removesuffix(lost).replace(" ", "")


def test_an_unknown_kind_of_token_is_refused(tokenizer, untyped):
    with pytest.raises(InvalidInput, match=r"token 'lats' is unknown; choose one of last, subject, eos, all; did you mean 'last'\?"):
        select_tokens(tokenizer, ["a"], "lats")


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(InvalidInput, match="object gives no character offsets; load the fast tokenizer of the same model"):
        select_tokens(object(), ["a"], "last")
