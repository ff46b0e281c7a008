"""Which token positions of a prompt carry what, per tokenizer.

Positions are found by the tokenizer's character offsets, never by fixed numbers: tokenizers differ in how they pad and
in how many tokens a word takes.
Where several tokenizers' tokens stand one behind the other (SD3), a word has a place among those of each. Prompts are given as the
tokenizer reads them; `graph.text` has the same functions for prompts as users write them.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

import numpy as np

from neuroscope.core.errors import InvalidInput, choose, counted

Token = Literal["last", "subject", "eos", "all"]
EditedToken = Literal["subject", "eos", "padding", "all"]
TOKENS: tuple[str, ...] = get_args(Token)


def select_tokens(tokenizer: Any, prompts: Sequence[str], token: Token, subject: str | None = None) -> np.ndarray:
    """Which positions of each prompt are chosen, as booleans [prompt, token].

    Args:
        tokenizer: a tokenizer of transformers with character offsets; prompts are padded to its `model_max_length`.
        prompts: the prompts.
        token: "last" is the final position, a padding slot unless the prompt fills the length (LOCOGEN's neuron code);
            "subject" the last token of `subject` where the prompt holds it, else of the last word; "eos" the first
            end-of-text token; "all" every position.
        subject: the word or words to look for, without regard to case.

    Raises:
        InvalidInput: an unknown kind of token, or a tokenizer without offsets.
    """
    choose("token", token, TOKENS)
    *before, last = [_selected(part, prompts, token, subject) for part in _parts(tokenizer)]
    if token == "last":
        before = [np.zeros_like(each) for each in before]
    return np.concatenate([*before, last], axis=1)


def _selected(tokenizer: Any, prompts: Sequence[str], token: Token, subject: str | None) -> np.ndarray:
    encoded = _encode(tokenizer, prompts)
    chosen = np.zeros(np.shape(encoded["input_ids"]), dtype=bool)
    if token == "all":
        chosen[:] = True
    elif token == "last":
        chosen[:, -1] = True
    else:
        for row, (prompt, ids, offsets) in enumerate(zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True)):
            end = _end_of_text(tokenizer, ids, offsets)
            chosen[row, end if token == "eos" else _subject(prompt, offsets, end, subject)] = True
    return chosen


def kinds_of_tokens(tokenizer: Any, prompts: Sequence[str], subject: str) -> np.ndarray:
    """What each position of each prompt is, as words [prompt, token].

    "start" (before all words), "before" the subject, "subject" (all but its last token), "last subject", "after" it,
    "eos" (the first end-of-text token) and "padding". A prompt without the subject has "before" alone.
    """
    return np.concatenate([_kinds(part, prompts, subject) for part in _parts(tokenizer)], axis=1)


def _kinds(tokenizer: Any, prompts: Sequence[str], subject: str) -> np.ndarray:
    encoded = _encode(tokenizer, prompts)
    kinds = np.full(np.shape(encoded["input_ids"]), "before", dtype="<U12")
    for row, (prompt, ids, offsets) in enumerate(zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        end = _end_of_text(tokenizer, ids, offsets)
        inside = _span(prompt, offsets, end, subject)
        if inside:
            kinds[row, inside] = "subject"
            kinds[row, inside[-1]] = "last subject"
            kinds[row, inside[-1] + 1 : end] = "after"
        kinds[row, end + 1 :] = "padding"
        kinds[row, end] = "eos"
        kinds[row, : next(index for index, (first, last) in enumerate(offsets) if first < last or index == end)] = "start"
    return kinds


def align(tokenizer: Any, pairs: Sequence[tuple[str, str]], subject: str, kinds: Collection[str]) -> list[list[tuple[int, int]]]:
    """Which position of each pair's first prompt corresponds to which of its second, for some kinds of tokens.

    Equal tokens correspond; a replaced word to the last token of what replaced it, a word that was taken out to the one
    before it; end-of-text and padding tokens to each other, counted from the first end-of-text token.

    Args:
        tokenizer: as in `select_tokens`.
        pairs: prompts with and without the subject.
        subject: what the first prompts have. Where one does not hold it, the words that differ stand for it.
        kinds: which tokens: "subject" (its last one), "eos", "padding", or "all" of the prompt.

    Returns:
        For each pair its corresponding positions, in order.
    """
    found: list[list[tuple[int, int]]] = [[] for _ in pairs]
    first = 0
    for part in _parts(tokenizer):
        for places, more in zip(found, _aligned(part, pairs, subject, kinds), strict=True):
            places += [(first + one, first + other) for one, other in more]
        first += part.model_max_length
    return found


def _aligned(tokenizer: Any, pairs: Sequence[tuple[str, str]], subject: str, kinds: Collection[str]) -> list[list[tuple[int, int]]]:
    firsts, seconds = (_encode(tokenizer, prompts) for prompts in zip(*pairs, strict=True))
    found = []
    for row, labels in enumerate(_kinds(tokenizer, [first for first, _ in pairs], subject)):
        ids, others = firsts["input_ids"][row], seconds["input_ids"][row]
        end = _end_of_text(tokenizer, ids, firsts["offset_mapping"][row])
        other_end = _end_of_text(tokenizer, others, seconds["offset_mapping"][row])
        partner, differing = _partners(ids[:end], others[:other_end])
        partner += [min(other_end + index - end, len(others) - 1) for index in range(end, len(ids))]
        if "last subject" not in labels:
            labels[(differing or [end - 1])[-1]] = "last subject"
        wanted = set(labels) if "all" in kinds else {{"subject": "last subject"}.get(kind, kind) for kind in kinds}
        found.append([(index, partner[index]) for index, label in enumerate(labels) if label in wanted])
    return found


def _partners(ids: Sequence[int], others: Sequence[int]) -> tuple[list[int], list[int]]:
    """For each token the position of its partner among others, and which tokens have no equal one."""
    partner: list[int] = []
    differing: list[int] = []
    for kind, first, last, other_first, other_last in difflib.SequenceMatcher(None, ids, others, autojunk=False).get_opcodes():
        if kind == "equal":
            partner += range(other_first, other_last)
        elif kind != "insert":
            partner += [max(0, other_last - 1)] * (last - first)
            differing += range(first, last)
    return partner, differing


def warn_of_lost_words(tokenizer: Any, prompts: Sequence[str]) -> None:
    """Warns of each prompt that is longer than the model reads, naming the words that are cut off.

    Of several tokenizers the one that reads most counts.
    """
    tokenizer = max(_parts(tokenizer), key=lambda part: part.model_max_length)
    for prompt, offsets in zip(prompts, _encode(tokenizer, prompts)["offset_mapping"] if prompts else (), strict=True):
        read = max(end for _, end in offsets)
        if lost := prompt[read:].strip():
            message = f"the prompt {prompt!r} is longer than the model's {counted(tokenizer.model_max_length, 'token')}; it loses {lost!r}"
            warnings.warn(message, UserWarning, stacklevel=2)


def _parts(tokenizer: Any) -> Sequence[Any]:
    """The tokenizers whose tokens stand one behind the other in a context; one, where there are not several."""
    parts: Sequence[Any] = getattr(tokenizer, "parts", (tokenizer,))
    return parts


def _encode(tokenizer: Any, prompts: Sequence[str]) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidInput(f"{type(tokenizer).__name__} gives no character offsets; load the fast tokenizer of the same model")
    return tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_offsets_mapping=True
    )


def _end_of_text(tokenizer: Any, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> int:
    """The first end-of-text token after the words; a prompt that was cut still ends with one."""
    empty = [index for index, (start, end) in enumerate(offsets) if start == end and ids[index] == tokenizer.eos_token_id]
    return empty[0] if empty else len(ids) - 1


def _subject(prompt: str, offsets: Sequence[tuple[int, int]], end: int, subject: str | None) -> int:
    """The last token of the subject's last occurrence, else the last token with a letter or digit, else the end of text."""
    if inside := _span(prompt, offsets, end, subject):
        return inside[-1]
    words = [index for index, (first, last) in enumerate(offsets[:end]) if any(letter.isalnum() for letter in prompt[first:last])]
    return words[-1] if words else end


def _span(prompt: str, offsets: Sequence[tuple[int, int]], end: int, subject: str | None) -> list[int]:
    """The tokens of the subject's last occurrence; empty where the prompt does not hold it."""
    found = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt, re.IGNORECASE)) if subject else []
    if not found:
        return []
    start, stop = found[-1].span()
    return [index for index, (first, last) in enumerate(offsets[:end]) if first < last and start <= first and last <= stop]
