import pytest

from neuroscope import (
    ForeignFile,
    InvalidFile,
    InvalidInput,
    NeuroscopeError,
    NonFiniteActivation,
    SiteNeverRan,
    UnknownSite,
    UnsupportedModel,
)
from neuroscope.core.errors import choose, closest


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InvalidInput, ValueError),
        (UnknownSite, KeyError),
        (SiteNeverRan, RuntimeError),
        (UnsupportedModel, ValueError),
        (InvalidFile, ValueError),
        (ForeignFile, InvalidFile),
        (NonFiniteActivation, FloatingPointError),
    ],
)
def test_every_error_is_caught_as_ours_and_as_pythons(kind, builtin):
    assert issubclass(kind, NeuroscopeError)
    assert issubclass(kind, builtin)
    assert str(kind("what is wrong")) == "what is wrong"


def test_near_names_are_suggested_and_far_ones_are_not():
    assert closest("vlaue", ["key", "value"]) == "; did you mean 'value'?"
    assert closest("zzz", ["key", "value"]) == ""


def test_choose_returns_what_is_allowed_and_names_it_otherwise():
    assert choose("role", "key", ("key", "value")) == "key"
    with pytest.raises(InvalidInput, match=r"role 'vlaue' is unknown; choose one of key, value; did you mean 'value'\?"):
        choose("role", "vlaue", ("key", "value"))
