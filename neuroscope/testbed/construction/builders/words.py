"""Real tokenizers with small vocabularies: the world's words whole, every other word by letters."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, GemmaTokenizer, Qwen2Tokenizer, T5TokenizerFast

_LETTERS = string.ascii_lowercase + string.digits + string.punctuation


def build_t5_tokenizer(texts: Iterable[str]) -> T5TokenizerFast:
    """A unigram tokenizer, as IF's is: no token before the text, `</s>` behind it, `<pad>` with number 0.

    Words that the texts hold are one token, others are spelled.
    """
    words = sorted({word for text in texts for word in text.lower().replace(",", " ").split()})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    whole = [(f"▁{word}", -5.0) for word in words]
    spelled = [("▁", -8.0), *((letter, -10.0) for letter in _LETTERS)]
    return T5TokenizerFast(vocab=[*special, *whole, *spelled], extra_ids=0, model_max_length=512)


def build_bert_tokenizer(texts: Iterable[str]) -> BertTokenizer:
    """A word-piece tokenizer, as BERT's is: `[CLS]` before the text and `[SEP]` behind it, `[PAD]` with number 0.

    Words that the texts hold are one token, others are spelled.
    """
    words = sorted({word for text in texts for word in text.lower().replace(",", " ").split()})
    letters = [f"{begin}{letter}" for letter in _LETTERS for begin in ("", "##")]
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters])
    return BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}, model_max_length=77)


def build_gemma_tokenizer(texts: Iterable[str]) -> GemmaTokenizer:
    """A byte-pair tokenizer, as Gemma's is: `<bos>` before the text, nothing behind it, spaces that begin words, `<pad>` with number 0.

    Words that the texts hold are one token behind a space, others begin with what they share with one and are spelled on.
    """
    words = sorted({word for text in texts for word in text.split()})
    merges = dict.fromkeys((f"▁{word[:end]}", word[end]) for word in words for end in range(len(word)))
    letters = sorted({"▁", "\n", *string.ascii_letters, *_LETTERS, *"".join(words)})
    vocabulary = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", *letters, *(first + last for first, last in merges)])
    tokenizer = GemmaTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}, merges=list(merges))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
    return tokenizer


def build_qwen_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """A byte-level tokenizer, as Qwen's is: nothing around the text, spaces that begin words, `<|im_end|>` as its last token.

    Words that the texts hold behind a space or at the beginning of a line are one token there, others are spelled.
    """
    lines = [line for text in texts for line in re.sub(r"<\|\w+\|>", "\n", text).splitlines()]
    inside, first = (
        dict.fromkeys(word for line in reversed(lines) for word in re.findall(pattern, line))
        for pattern in (r"(?<= )[^\W\d_]+", r"^[^\W\d_]+")
    )
    # merges of words behind a space come before others, and those of the last texts before those of the first, which they may break up
    whole = [*(f"Ġ{word}" for word in inside), *first]
    merges = dict.fromkeys((word[:end], word[end]) for word in whole for end in range(1, len(word)))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = dict.fromkeys([*special, *sorted(ByteLevel.alphabet()), *(first + last for first, last in merges)])
    numbered = {word: number for number, word in enumerate(vocabulary)}
    return Qwen2Tokenizer(vocab=numbered, merges=list(merges), eos_token=special[2], additional_special_tokens=special[1:2])
