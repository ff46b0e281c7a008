"""Keys by content: equal where the content is, in every process, and different where it is not."""

import dataclasses
import enum
import functools
import io
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image

from neuroscope import HookGraph, InvalidInput
from neuroscope.generation.content import content
from neuroscope.generation.keys import fingerprint
from neuroscope.generation.model_content import scorer


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Setting:
    strength: float
    image: object = None


def image(white: bool = False, mode: str = "RGB") -> Image.Image:
    found = Image.new("RGB", (64, 64))
    if white:
        found.putpixel((40, 40), (255, 255, 255))
    return found.convert(mode)


def latents(white: float = 0.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """More elements than a repr shows, all but one of which are zero."""
    found = torch.zeros(1, 3, 64, 64)
    found[0, 1, 30, 30] = white
    return found.to(dtype)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values() -> list:
    """Values of every kind, no two of them equal."""
    return [
        *[None, True, False, 1, 0, 1.0, 0.0, -0.0, float("nan"), float("inf"), 1j, 10**30, -1, "1", "", "None", b"1", bytearray(b"1")],
        *[
            0.1,
            0.1 + 2**-55,
            np.float32(1),
            np.float64(1),
            np.int64(1),
            torch.float32,
            "torch.float32",
            torch.device("cpu"),
            Path("a"),
            "a",
        ],
        *[Colour.RED, Colour.BLUE, range(3), [0, 1, 2], (0, 1, 2), {0, 1, 2}, [], (), {}, set(), [[]], [[], []], {"a": 1}, {"a": 1.0}],
        *[{"a": 1, "b": 2}, {"a": 2, "b": 1}, [("a", 1)], ["ab", "c"], ["a", "bc"], {1: 2}, {"1": 2}],
        *[latents(), latents(1.0), latents(dtype=torch.float16), latents()[0], latents().double(), latents().bool(), -latents()],
        *[latents().numpy(), latents(1.0).numpy(), latents().numpy().astype(">f4"), np.array(["a", "b"]), np.array([None, 1])],
        *[image(), image(white=True), image(mode="L"), image(mode="P"), image(mode="RGBA"), image().resize((32, 128))],
        *[
            generator(0),
            generator(1),
            Setting(1.0),
            Setting(1),
            Setting(1.0, latents()),
            Setting(1.0, latents(1.0)),
            {"image": [image()]},
        ],
        *[{"image": [image(white=True)]}, torch.Size([1]), torch.tensor(1.0), torch.tensor([1.0]), torch.zeros(0), torch.zeros(0, 3)],
    ]


PRINT = (
    "from tests.test_content import values; from neuroscope.generation.content import content; "
    "print([content('a', each) for each in values()])"
)


def test_different_content_has_different_keys():
    keys = [content("a value", each) for each in values()]
    same = [(first, second) for first in range(len(keys)) for second in range(first) if keys[first] == keys[second]]
    assert [(values()[first], values()[second]) for first, second in same] == []


def test_equal_content_has_equal_keys_in_every_process():
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    done = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == str([content("a", each) for each in values()])


class TestEqualContent:
    def test_the_order_of_keys_and_members_does_not_matter(self):
        assert content("a", {"x": 1, "y": [2]}) == content("a", {"y": [2], "x": 1})
        assert content("a", {3, 1, 2}) == content("a", {1, 2, 3})

    def test_strides_and_lazy_views_do_not_matter(self):
        values = torch.arange(24.0).reshape(2, 3, 4, 1)
        assert content("a", values.to(memory_format=torch.channels_last)) == content("a", values)
        assert content("a", values.transpose(0, 1)) == content("a", values.transpose(0, 1).contiguous())
        assert content("a", torch.zeros(1).expand(5)) == content("a", torch.zeros(5))
        assert content("a", torch.tensor([1 + 2j]).conj()) == content("a", torch.tensor([1 - 2j]))
        assert content("a", np.arange(6).reshape(2, 3).T) == content("a", np.ascontiguousarray(np.arange(6).reshape(2, 3).T))

    def test_an_images_file_does_not_matter(self):
        file = io.BytesIO()
        image(white=True).save(file, "PNG")
        assert content("a", Image.open(file)) == content("a", image(white=True))

    PLAIN = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner, inner),
        max_leaves=8,
    )

    @settings(max_examples=100, deadline=None)
    @given(PLAIN, PLAIN)
    def test_keys_are_equal_exactly_where_a_literal_is(self, first, second):
        """The reference is Python's own literal, with the pairs of every mapping in order."""
        assert (content("a", first) == content("a", second)) == (literal(first) == literal(second))
        assert content("a", [first, second]) == content("a", [first, second])


def literal(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{sorted((literal(key), literal(each)) for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[literal(each) for each in value]}"
    return repr(value)


class Opaque:
    pass


NO_FORM = [lambda *_: None, len, print, Opaque(), object(), iter([1]), functools.partial(len, [1]), Opaque, torch.nn.Linear(1, 1)]


@pytest.mark.parametrize("value", NO_FORM, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("inside", [lambda value: value, lambda value: [value], lambda value: {"a": {"b": value}}, Setting])
def test_what_has_no_stable_form_is_refused_by_its_name(value, inside):
    with pytest.raises(InvalidInput, match=r"^the option 'thing'.* holds a \w+, whose content has no stable form.*leave out `output`"):
        content("the option 'thing'", inside(value))


def test_what_is_nested_without_end_is_refused_or_told_apart():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="a is nested too deeply for a ledger; leave out `output`"):
        content("a", deep)
    endless: list = [1]
    endless.append(endless)
    other: list = [2]
    other.append(other)
    assert content("a", endless) != content("a", other)


class Scorer:
    """A metric that holds what it needs."""

    name = "scorer"

    def __init__(self, threshold: float = 0.5, **held: object) -> None:
        self.threshold = threshold
        self.__dict__ |= held


def made(factor: float, constant: int = 1) -> type:
    """A class whose code differs by what it encloses."""

    class Made(Scorer):
        def __call__(self, images: list, prompts: list) -> float:
            return factor

    return Made


def module(weight: float) -> torch.nn.Module:
    found = torch.nn.Linear(2, 2)
    with torch.no_grad():
        found.weight.fill_(0).flatten()[0] = weight
        found.bias.fill_(0)
    return found


class TestMetrics:
    def test_they_are_told_apart_by_class_code_and_what_they_hold(self):
        class Local(Scorer):
            def __call__(self, images: list, prompts: list) -> int:
                return 1

        first = Local

        class Local(Scorer):
            def __call__(self, images: list, prompts: list) -> int:
                return 2

        def every() -> list:
            found = [
                Scorer(),
                Scorer(0.25),
                Scorer(extra=latents()),
                Scorer(extra=latents(1.0)),
                first(),
                Local(),
                made(1.0)(),
                made(2.0)(),
            ]
            return [*found, Scorer(net=module(1.0)), Scorer(net=module(2.0)), Scorer(net=[module(1.0)]), Scorer(inner=Scorer(0.125))]

        keys = [content("a metric", each, scorer) for each in every()]
        assert len(set(keys)) == len(keys)
        assert keys == [content("a metric", each, scorer) for each in every()]

    def test_what_has_no_stable_form_is_refused_by_its_name(self):
        with Path(os.devnull).open() as file:
            for held in (lambda: None, file, [file], (each for each in [1])):
                with pytest.raises(InvalidInput, match="the metric 'scorer'.* holds a .*, whose content has no stable form"):
                    content("the metric 'scorer'", Scorer(held=held), scorer)


def test_saving_a_pipeline_changes_nothing_of_its_content(fresh, tmp_path):
    before = fingerprint(HookGraph(fresh))
    fresh.save_pretrained(tmp_path)
    assert fingerprint(HookGraph(fresh)) == before
