import numpy as np
import pytest

from neuroscope import InvalidInput
from neuroscope.tokens import kinds_of_tokens, select_tokens, warn_of_lost_words
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


class TestKinds:
    @pytest.mark.parametrize(
        ("prompt", "subject", "before", "inside"),
        [
            ("a red circle in the style of stipple", "stipple", "a red circle in the style of", "stipple"),
            ("a red circle", "red", "a", "red"),
            ("a red circle", "RED", "a", "red"),
            ("red circle", "red", "", "red"),
            ("the emblem of astoria in hatch style", "the emblem of astoria", "", "the emblem of astoria"),
            ("see the emblem of astoria", "emblem of astoria", "see the", "emblem of astoria"),
            ("a red ring in a red circle", "red", "a red ring in a", "red"),  # the last occurrence
            ("a ring in spring", "ring", "a", "ring"),
        ],
    )
    def test_they_follow_each_other_in_the_prompts_order(self, tokenizer, prompt, subject, before, inside):
        """Counted in tokens of the prompt's own beginnings; the subject's last token is told apart from its others."""
        first, last = position_after(tokenizer, before), position_after(tokenizer, f"{before} {inside}".strip())
        end, length = position_after(tokenizer, prompt), tokenizer.model_max_length
        expected = ["start"] + ["before"] * (first - 1) + ["subject"] * (last - first - 1) + ["last subject"]
        expected += ["after"] * (end - last) + ["eos"] + ["padding"] * (length - end - 1)
        (kinds,) = kinds_of_tokens(tokenizer, [prompt], subject)
        assert kinds.tolist() == expected

    def test_padding_is_padding_whichever_token_pads(self, tokenizer):
        """Version 1 pads with the end-of-text token, of which only the first ends the text, and version 2 with '!'."""
        (kinds,) = kinds_of_tokens(tokenizer, ["a red circle!"], "red")
        ids = np.array(tokenizer("a red circle!", padding="max_length").input_ids)
        assert set(ids[kinds == "padding"]) == {tokenizer.pad_token_id}
        assert ids[kinds == "eos"].tolist() == [tokenizer.eos_token_id]
        assert (kinds == "after").sum() == position_after(tokenizer, "a red circle!") - position_after(tokenizer, "a red")

    @pytest.mark.parametrize("prompt", ["a red circle", ""])
    def test_without_the_subject_all_words_are_before(self, tokenizer, prompt):
        end, length = position_after(tokenizer, prompt), tokenizer.model_max_length
        (kinds,) = kinds_of_tokens(tokenizer, [prompt], "stipple")
        assert kinds.tolist() == ["start"] + ["before"] * (end - 1) + ["eos"] + ["padding"] * (length - end - 1)

    def test_a_prompt_that_is_cut_has_no_padding_and_ends_with_the_end_of_text(self, tokenizer):
        (kinds,) = kinds_of_tokens(tokenizer, [LONG], "astoria")
        first, last = position_after(tokenizer, "the emblem of"), position_after(tokenizer, "the emblem of astoria")
        length = tokenizer.model_max_length
        assert kinds[last - 1] == "last subject"
        assert set(kinds[1:first]) == {"before"}
        assert kinds[last:].tolist() == ["after"] * (length - 1 - last) + ["eos"]

    def test_a_subject_that_is_cut_off_is_not_there(self, tokenizer):
        (kinds,) = kinds_of_tokens(tokenizer, [LONG], "dorvane")
        assert kinds.tolist() == ["start"] + ["before"] * (tokenizer.model_max_length - 2) + ["eos"]

    def test_each_prompt_has_kinds_of_its_own(self, tokenizer):
        prompts = ["a red circle", "stipple", "a circle in the style of stipple"]
        together = kinds_of_tokens(tokenizer, prompts, "stipple")
        assert together.shape == (3, tokenizer.model_max_length)
        for prompt, kinds in zip(prompts, together, strict=True):
            assert kinds.tolist() == kinds_of_tokens(tokenizer, [prompt], "stipple")[0].tolist()

    def test_the_last_subject_is_the_token_that_recordings_read(self, tokenizer):
        prompts = ["a red circle in the style of stipple", "the emblem of astoria in stipple style", LONG]
        for subject in ("stipple", "the emblem of astoria"):
            kinds = kinds_of_tokens(tokenizer, prompts, subject) == "last subject"
            chosen = select_tokens(tokenizer, prompts, "subject", subject)
            held = kinds.any(axis=1)
            assert np.array_equal(kinds[held], chosen[held])
            assert held.any()
