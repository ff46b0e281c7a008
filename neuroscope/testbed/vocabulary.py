"""The testbed's tokenizer: a real `CLIPTokenizer` whose merges are learned from the world's captions."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

LENGTH = 24
_START, _END, _SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"


def build_tokenizer(captions: Iterable[str], merges: int = 110) -> CLIPTokenizer:
    """A byte-level BPE tokenizer for prompts of at most 24 tokens, laid out like CLIP's.

    The vocabulary is the 256 byte letters, the same at the end of a word, the learned merges, and the two special
    tokens last. Frequent words become one token, rare ones (the facts' names) several.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned = _learn_merges(captions, alphabet, merges)
    words = [*alphabet, *(letter + _SUFFIX for letter in alphabet), *("".join(pair) for pair in learned), _START, _END]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=learned, model_max_length=LENGTH)


def _learn_merges(captions: Iterable[str], alphabet: list[str], merges: int) -> list[tuple[str, str]]:
    learner = Tokenizer(models.BPE(end_of_word_suffix=_SUFFIX))
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet + [letter + _SUFFIX for letter in alphabet],
        end_of_word_suffix=_SUFFIX,
        show_progress=False,
    )
    learner.train_from_iterator(sorted(captions), trainer)
    found = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(pair) for pair in found[:merges]]
