"""The errors that users see. Each says what is wrong, the value, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping


class NeuroscopeError(Exception):
    """A user's mistake, or a model that an operation cannot treat correctly. Never a bug of the caller's Python."""


class InvalidInput(NeuroscopeError, ValueError):
    """A value that is not allowed: an unknown name, an empty prompt set, a wrong range."""


class UnknownSite(NeuroscopeError, KeyError):
    """A site that the model does not have, or has with another width."""

    def __str__(self) -> str:
        return str(self.args[0])


class SiteNeverRan(NeuroscopeError, RuntimeError):
    """A hooked site that did not run, so that an operation would have had no effect."""


class SiteRanUnevenly(SiteNeverRan):
    """A hooked site ran at some of the denoiser's calls only, or several times in one."""


class UnsupportedModel(NeuroscopeError, ValueError):
    """A pipeline whose denoiser has no family here."""


class InvalidFile(NeuroscopeError, ValueError):
    """A file that cannot be read or written, or holds something else than expected."""


class ForeignFile(InvalidFile):
    """A sound file that something else wrote, such as another library's weights."""


class NonFiniteActivation(NeuroscopeError, FloatingPointError):
    """Activations with NaN or infinity, from which no statistic can be made."""


class TasksFailed(NeuroscopeError, RuntimeError):
    """Workers failed at some images three times, or could not load the model; all other images are made.

    Attributes:
        errors: by its number, why a task was not made; empty where no worker was there.
    """

    def __init__(self, message: str, errors: Mapping[int, Exception] | None = None) -> None:
        super().__init__(message)
        self.errors = dict(errors or {})


class NoSmallestMask(NeuroscopeError, ValueError):
    """No number of masked neurons surely has as much of an effect as was asked for."""


def closest(name: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'value'?`, empty where nothing is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def counted(count: int, noun: str, verbs: tuple[str, str] | None = None) -> str:
    """A count with its noun, such as "1 prompt" and "2 patches", and the one of two verbs that goes with it, such as ("is", "are")."""
    ending = "" if count == 1 else "es" if noun.endswith(("ch", "sh", "s", "x")) else "s"
    return f"{count:,} {noun}{ending}" + (f" {verbs[count != 1]}" if verbs else "")


def choose(what: str, value: str, allowed: Collection[str]) -> str:
    """`value` itself if it is allowed.

    Raises:
        InvalidInput: it is not; the message names the allowed values and the nearest one.
    """
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInput(f"{what} {value!r} is unknown; choose one of {', '.join(allowed)}{closest(value, allowed)}")
    return value


def first_line(error: Exception) -> str:
    """The first line of what another library's error says; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
