"""Concepts: prompts in which something is present, paired with prompts in which it is absent."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, choose, closest, counted
from neuroscope.core.sharing.summary import Shown, Summary

_FIELDS = ("name", "present", "absent", "test")
#: Of what a concept is against, how many are named.
_NAMED = 3


@dataclass(frozen=True)
class Concept(Shown):
    """A concept and its prompts.

    Attributes:
        name: the word or words that say it.
        present: prompts with the concept.
        absent: prompts without it; `absent[i]` is `present[i]` with the concept taken out or replaced.
        test: prompts with the concept that are kept for evaluation; none of them is among the others.
        against: what the absent prompts say instead, where that is known, such as other styles.

    Raises:
        InvalidInput: an arm is empty, the arms differ in length or share a prompt, a prompt or the name is empty or no string, or a
            test prompt is also used for recording.
    """

    name: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    test: tuple[str, ...] = ()
    against: tuple[str, ...] = ()

    def __init__(self, name: str, present: Any, absent: Any, test: Any = (), against: Any = ()) -> None:
        object.__setattr__(self, "name", checks.text("the concept's name", name))
        object.__setattr__(self, "against", checks.strings("against", against))
        for arm, value in (("present", present), ("absent", absent), ("test", test)):
            object.__setattr__(self, arm, _prompts(arm, value))
        for arm in ("present", "absent"):
            if not getattr(self, arm):
                raise InvalidInput(f"concept {name!r} has no {arm} prompt; give at least two in each arm")
        if len(self.present) != len(self.absent):
            counts = f"{len(self.present)} present and {len(self.absent)} absent"
            raise InvalidInput(f"concept {name!r} has {counts} prompts; they are pairs, so give as many of each")
        self._refuse_shared_prompts()
        if shared := set(self.test) & {*self.present, *self.absent}:
            raise InvalidInput(f"test prompt {sorted(shared)[0]!r} of concept {name!r} is also recorded from; keep them apart")

    def _refuse_shared_prompts(self) -> None:
        """Where an arm holds a prompt of the other, what differs between the arms is not the concept."""
        for number, (present, absent) in enumerate(zip(self.present, self.absent, strict=True)):
            if present == absent:
                raise InvalidInput(
                    f"pair {number} of concept {self.name!r} is {present!r} in both arms, so nothing differs; "
                    "take the concept out of the absent one"
                )
        if shared := set(self.present) & set(self.absent):
            raise InvalidInput(
                f"prompt {sorted(shared)[0]!r} of concept {self.name!r} stands in both arms; keep the concept to the present prompts"
            )

    def __repr__(self) -> str:
        contrast = self.contrast and f" {self.contrast}"
        return f"Concept({self.name!r}: {counted(len(self.present), 'pair')}{contrast}, {counted(len(self.test), 'test prompt')})"

    @property
    def contrast(self) -> str:
        """What the absent prompts say instead, in a short phrase such as "against plain, hatch, mosaic and 2 more"; empty if not known."""
        if not self.against:
            return ""
        named, more = list(self.against[:_NAMED]), len(self.against) - _NAMED
        *first, last = [*named, f"{more} more"] if more > 0 else named
        return f"against {', '.join(first)}{' and ' if first else ''}{last}"

    def summary(self) -> Summary:
        """See `Shown`: the pairs of prompts."""
        import pandas as pd

        return Summary.of(repr(self), pd.DataFrame({"present": self.present, "absent": self.absent}))

    @classmethod
    def style(cls, name: str, prompts: str = "general", *, against: str | Iterable[str] | None = None) -> Self:
        """An artist's or a texture's style: "{subject} in the style of {name}" against the same subject in several other styles.

        Against a single other style, only what differs between the two can be found. `against` chooses the other styles, one or several.
        """
        return cls.attribute(name, "style", prompts, against=against)

    @classmethod
    def object(cls, name: str, prompts: str = "general") -> Self:
        """A thing or a character, against prompts with another thing in its place."""
        return cls.attribute(name, "object", prompts)

    @classmethod
    def fact(cls, subject: str, answer: str = "", prompts: str = "general") -> Self:
        """A fact, named by what it is about ("the emblem of Astoria"), against neutral subjects.

        `answer` is the new answer that an edit or a swap puts in: with it, the absent prompts show the answer.
        """
        concept = cls.attribute(subject, "fact", prompts)
        if not answer:
            return concept
        checks.text("answer", answer, "the fact's new answer")
        replaced = tuple(prompt.replace(subject, answer) for prompt in concept.present)
        return cls(subject, concept.present, replaced, concept.test, (answer,))

    @classmethod
    def attribute(cls, name: str, kind: str = "attribute", prompts: str = "general", *, against: str | Iterable[str] | None = None) -> Self:
        """Any attribute, with the built-in prompts of a kind.

        Args:
            name: the word or words, such as "melancholy".
            kind: "style", "object", "fact", "colour", "texture", "lighting", "emotion", "material", or "attribute" where
                none of these fits.
            prompts: the built-in prompt set: "general", or "testbed" for the bundled models' small vocabulary.
            against: what the absent prompts say instead, one or several; each subject takes its turn with all. By default the prompt
                set's own, without the concept itself.

        Raises:
            InvalidInput: an unknown kind or prompt set, an empty name, or a concept that is against itself.
        """
        templates = _builtin(prompts)
        choose("kind of attribute", kind, tuple(templates))
        if isinstance(name, str) and not name.strip():
            raise InvalidInput(f"the {kind} has no name; say which, such as 'Van Gogh'")
        checks.text(f"the {kind}'s name", name)
        others = _others(name, templates[kind]["neutral"], against)
        return cls(name, *_fill(name, others, templates[kind]), others)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """A concept from a TOML file with `name`, `present`, `absent` and, if wanted, `test`.

        Raises:
            InvalidInput: no such file, not TOML, or a key that is missing or unknown.
        """
        try:
            data = tomllib.loads(checks.path("path", path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInput(f"the concept file {path} cannot be read: {error.strerror}") from error
        except RecursionError:
            raise InvalidInput(
                f"the concept file {path} is nested too deeply; it needs name, present and absent, lists of strings"
            ) from None
        except ValueError as error:  # not TOML, not UTF-8, or a number of too many digits
            raise InvalidInput(f"the concept file {path} is not TOML: {error}") from error
        for key in data:
            if key not in _FIELDS:
                raise InvalidInput(
                    f"the concept file {path} has an unknown key {key!r}{closest(key, _FIELDS)}; allowed: {', '.join(_FIELDS)}"
                )
        if missing := [key for key in _FIELDS[:3] if key not in data]:
            raise InvalidInput(f"the concept file {path} lacks {', '.join(missing)}; it needs name, present and absent")
        try:
            return cls(**data)
        except InvalidInput as error:
            raise InvalidInput(f"the concept file {path}: {error}") from None


def _prompts(arm: str, value: Any) -> tuple[str, ...]:
    """An arm's prompts; an empty prompt, which is no pair of anything, is refused."""
    if isinstance(value, Mapping | Set):
        raise InvalidInput(f"{arm} prompts are a list of strings, not {checks.shown(value)}; their order pairs them")
    for prompt in (given := checks.strings(f"{arm} prompts", value)):
        checks.text(f"one of the {arm} prompts", prompt, "a prompt such as 'a red star'")
    return given


def _builtin(name: str) -> dict[str, Any]:
    folder = resources.files("neuroscope") / "data"
    known = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tomllib.loads((folder / f"{choose('prompt set', name, known)}.toml").read_text())


def _others(name: str, neutral: list[str], against: str | Iterable[str] | None) -> list[str]:
    """What absent prompts say in the concept's place: what was given, or the prompt set's own but the concept."""
    given = [against] if isinstance(against, str) else against
    others = [each for each in neutral if not _overlap(name, each)] if given is None else list(checks.strings("against", given))
    checks.distinct("values of against", others)
    if not others or any(_overlap(name, each) for each in others):
        raise InvalidInput(f"{name!r} is what the absent prompts would say instead; give other words as against, or prompts of your own")
    return others


def _overlap(name: str, other: str) -> bool:
    """Whether one of two texts says all words of the other, as "Monet" and "Claude Monet" do."""
    words, others = ({*each.casefold().split()} for each in (name, other))
    return words <= others or others <= words


def _fill(name: str, others: list[str], templates: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Present, absent and test prompts from templates with {name}, {subject} and, in absent ones, {neutral}.

    From one template to the next, each subject has another of the `others`.
    """
    pairs, test = [], []
    for (turn, pair), (number, subject) in itertools.product(enumerate(templates["pairs"]), enumerate(templates["subjects"])):
        neutral = others[(turn + number) % len(others)]
        present, absent = (text.format(name=name, subject=subject, neutral=neutral) for text in pair)
        pairs.append((present, absent))
    for template, subject in itertools.product(templates["test"], templates["test_subjects"]):
        test.append(template.format(name=name, subject=subject))
    used = {prompt for pair in pairs for prompt in pair}
    return [present for present, _ in pairs], [absent for _, absent in pairs], [prompt for prompt in test if prompt not in used]
