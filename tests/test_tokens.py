import warnings

import numpy as np
import pytest
import torch

from neuroscope import HookGraph, InvalidInput
from neuroscope.core.tokens import kinds_of_tokens, select_tokens, warn_of_lost_words
from tests.families import tiny

#: Sana puts an instruction before each prompt, see tests/families/test_sana.py; AudioLDM 2's first tokenizer is CLAP's.
OTHERS = ("sana", "audioldm2")
TOKENIZERS = [
    *[pytest.param((name, "tokenizer"), id=name) for name in tiny.PIPELINES if name not in OTHERS],
    pytest.param(("audioldm2", "tokenizer_2"), id="audioldm2's second"),
    pytest.param(("sdxl", "tokenizer_2"), id="sdxl's second"),
]


@pytest.fixture(scope="module", params=TOKENIZERS)
def source(request):
    """A pipeline, and which of its tokenizers is meant."""
    name, part = request.param
    return tiny.PIPELINES[name](), part


@pytest.fixture(scope="module")
def tokenizer(source):
    """A tokenizer as its pipeline calls it: CLIP's ways to pad, and T5's, which has no token before the words."""
    pipe, part = source
    return HookGraph(pipe).text.tokenizer if part == "tokenizer" else getattr(pipe, part)


@pytest.fixture(scope="module")
def padding(source) -> int:
    """The id that pads."""
    return getattr(*source).pad_token_id


@pytest.fixture(scope="module")
def long(tokenizer) -> str:
    """A prompt beyond the length, its last word its own."""
    pieces = ["the emblem of astoria", *["and the emblem of belmora"] * (tokenizer.model_max_length // 5), "and the emblem of dorvane"]
    return " ".join(pieces)


def position_after(tokenizer, prefix: str) -> int:
    """The position of a prompt's next token, had the prompt only its first words."""
    return len(tokenizer([prefix])["input_ids"][0]) - 1


def padded(tokenizer, prompt: str) -> list[list[int]]:
    """The ids as the pipeline's encoder gets them."""
    return tokenizer([prompt], padding="max_length", max_length=tokenizer.model_max_length, truncation=True)["input_ids"]


def starts(tokenizer) -> list[str]:
    """The kinds of what stands before all words."""
    return ["start"] * position_after(tokenizer, "")


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
def test_eos_is_the_first_end_of_text_whatever_pads(tokenizer, padding, prompt):
    (position,) = chosen(tokenizer, prompt, "eos")
    assert position == position_after(tokenizer, prompt)
    (ids,) = padded(tokenizer, prompt)
    assert ids[position] == tokenizer.eos_token_id
    assert set(ids[position + 1 :]) == {padding}


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
    assert chosen(tokenizer, "", "subject") == chosen(tokenizer, "", "eos") == [len(starts(tokenizer))]


def test_a_prompt_that_fills_the_length_still_ends_with_the_end_of_text(tokenizer, long):
    assert chosen(tokenizer, long, "eos") == chosen(tokenizer, long, "last") == [tokenizer.model_max_length - 1]


def test_a_prompt_beyond_the_length_warns_of_the_words_it_loses(tokenizer, long):
    with pytest.warns(
        UserWarning, match=rf"is longer than the model's {tokenizer.model_max_length} tokens; it loses '(?P<lost>.+)'"
    ) as caught:
        warn_of_lost_words(tokenizer, ["a red circle", long])
    assert len(caught) == 1
    lost = str(caught[0].message).split("it loses '")[1].removesuffix("'")
    assert long.endswith(lost)
    kept = tokenizer([long.removesuffix(lost)])["input_ids"]
    assert kept == padded(tokenizer, long)


def test_an_unknown_kind_of_token_is_refused(tokenizer, untyped):
    with pytest.raises(InvalidInput, match=r"token 'lats' is unknown; choose one of last, subject, eos, all; did you mean 'last'\?"):
        select_tokens(tokenizer, ["a"], "lats")


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(InvalidInput, match="object gives no character offsets; load the fast tokenizer of the same model"):
        select_tokens(object(), ["a"], "last")


class TestKinds:
    @pytest.mark.parametrize("prompt", ["a red circle", "the emblem of astoria in hatch style", ""])
    def test_padding_is_what_the_tokenizers_mask_leaves_out(self, tokenizer, prompt):
        """The mask that T5 is given; CLIP pads with a token of its own, which its mask leaves out as well."""
        length = tokenizer.model_max_length
        mask = tokenizer([prompt], padding="max_length", max_length=length, truncation=True)["attention_mask"]
        assert np.array_equal(kinds_of_tokens(tokenizer, [prompt], "red") != "padding", np.array(mask, dtype=bool))

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
        expected = starts(tokenizer) + ["before"] * (first - len(starts(tokenizer))) + ["subject"] * (last - first - 1) + ["last subject"]
        expected += ["after"] * (end - last) + ["eos"] + ["padding"] * (length - end - 1)
        (kinds,) = kinds_of_tokens(tokenizer, [prompt], subject)
        assert kinds.tolist() == expected

    def test_padding_is_padding_whichever_token_pads(self, tokenizer, padding):
        """Version 1 pads with the end-of-text token, of which only the first ends the text, and version 2 with '!'."""
        (kinds,) = kinds_of_tokens(tokenizer, ["a red circle!"], "red")
        ids = np.array(padded(tokenizer, "a red circle!")[0])
        assert set(ids[kinds == "padding"]) == {padding}
        assert ids[kinds == "eos"].tolist() == [tokenizer.eos_token_id]
        assert (kinds == "after").sum() == position_after(tokenizer, "a red circle!") - position_after(tokenizer, "a red")

    @pytest.mark.parametrize("prompt", ["a red circle", ""])
    def test_without_the_subject_all_words_are_before(self, tokenizer, prompt):
        end, length = position_after(tokenizer, prompt), tokenizer.model_max_length
        (kinds,) = kinds_of_tokens(tokenizer, [prompt], "stipple")
        assert kinds.tolist() == starts(tokenizer) + ["before"] * (end - len(starts(tokenizer))) + ["eos"] + ["padding"] * (
            length - end - 1
        )

    def test_a_prompt_that_is_cut_has_no_padding_and_ends_with_the_end_of_text(self, tokenizer, long):
        (kinds,) = kinds_of_tokens(tokenizer, [long], "astoria")
        first, last = position_after(tokenizer, "the emblem of"), position_after(tokenizer, "the emblem of astoria")
        length = tokenizer.model_max_length
        assert kinds[last - 1] == "last subject"
        assert set(kinds[len(starts(tokenizer)) : first]) == {"before"}
        assert kinds[last:].tolist() == ["after"] * (length - 1 - last) + ["eos"]

    def test_a_subject_that_is_cut_off_is_not_there(self, tokenizer, long):
        (kinds,) = kinds_of_tokens(tokenizer, [long], "dorvane")
        before = tokenizer.model_max_length - len(starts(tokenizer)) - 1
        assert kinds.tolist() == starts(tokenizer) + ["before"] * before + ["eos"]

    def test_each_prompt_has_kinds_of_its_own(self, tokenizer):
        prompts = ["a red circle", "stipple", "a circle in the style of stipple"]
        together = kinds_of_tokens(tokenizer, prompts, "stipple")
        assert together.shape == (3, tokenizer.model_max_length)
        for prompt, kinds in zip(prompts, together, strict=True):
            assert kinds.tolist() == kinds_of_tokens(tokenizer, [prompt], "stipple")[0].tolist()

    def test_the_last_subject_is_the_token_that_recordings_read(self, tokenizer, long):
        prompts = ["a red circle in the style of stipple", "the emblem of astoria in stipple style", long]
        for subject in ("stipple", "the emblem of astoria"):
            kinds = kinds_of_tokens(tokenizer, prompts, subject) == "last subject"
            chosen = select_tokens(tokenizer, prompts, "subject", subject)
            held = kinds.any(axis=1)
            assert np.array_equal(kinds[held], chosen[held])
            assert held.any()


@pytest.fixture(scope="module")
def inverted():
    """A pipeline with "<zorn>", of three vectors, and "<dot>", of one, loaded as diffusers loads them."""
    made = tiny.sd1()
    width = made.text_encoder.config.hidden_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.load_textual_inversion({"<zorn>": torch.ones(3, width)}, token="<zorn>")
        made.load_textual_inversion({"<dot>": torch.ones(1, width)}, token="<dot>")
    return made


@pytest.fixture(scope="module")
def text(inverted):
    return HookGraph(inverted).text


class TestTextualInversion:
    """An embedding of several vectors is one word of the prompt and several tokens of what the encoder reads."""

    def read(self, inverted, prompt):
        """The tokens that the pipeline's own encoding gives to its encoder."""
        seen = []
        handle = inverted.text_encoder.register_forward_pre_hook(
            lambda _module, args, kwargs: seen.append(args[0] if args else kwargs["input_ids"]), with_kwargs=True
        )
        inverted.encode_prompt(prompt, inverted.device, 1, False)
        handle.remove()
        return inverted.tokenizer.convert_ids_to_tokens(seen[0][0].tolist())

    @pytest.mark.parametrize("prompt", ["a red ring by <zorn>", "<zorn> a ring", "by <dot> and <zorn> and <zorn>", "a red ring"])
    def test_positions_are_those_that_the_encoder_reads(self, inverted, text, prompt):
        tokens = self.read(inverted, prompt)
        end = tokens.index("<|endoftext|>")
        assert np.flatnonzero(text.select_tokens([prompt], "eos")).tolist() == [end]
        if "<zorn>" in prompt:
            last = max(index for index, token in enumerate(tokens) if token == "<zorn>_2")
            assert np.flatnonzero(text.select_tokens([prompt], "subject", "<zorn>")).tolist() == [last]
            (kinds,) = text.kinds_of_tokens([prompt], "<zorn>")
            assert kinds[last - 2 : last + 1].tolist() == ["subject", "subject", "last subject"]
            assert kinds[end] == "eos"

    def test_the_last_word_may_be_one(self, inverted, text):
        prompt = "a red ring by <zorn>"
        assert np.flatnonzero(text.select_tokens([prompt], "subject", "blue")).tolist() == [self.read(inverted, prompt).index("<zorn>_2")]

    def test_pairs_correspond_at_what_the_encoder_reads(self, inverted, text):
        first, second = "a red ring by <zorn> here", "a red ring by plain here"
        (found,) = text.align([(first, second)], "<zorn>", ["subject", "eos"])
        tokens, others = self.read(inverted, first), self.read(inverted, second)
        assert found[-1] == (tokens.index("<|endoftext|>"), others.index("<|endoftext|>"))
        assert found[0][0] == tokens.index("<zorn>_2")

    def test_lost_words_are_counted_with_all_vectors(self, text):
        prompt = " ".join(["a ring by <zorn>"] * 4)
        with pytest.warns(UserWarning, match="is longer than the model's 24 tokens; it loses 'ring by <zorn>"):
            text.conditions([prompt])
