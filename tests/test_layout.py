"""Which rows of a batch carry the prompt, by what they are given."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuroscope import InvalidInput
from neuroscope.core.conditions import PLAIN, BatchLayout
from neuroscope.pipeline.hooking.guidance import observe_layout

ORDERS = [
    ("conditional",),
    ("unconditional",),
    ("unconditional", "conditional"),
    ("conditional", "unconditional"),
    ("conditional", "conditional"),
    ("unconditional", "conditional", "conditional"),
    ("conditional", "unconditional", "unconditional"),
]


def encoded(images: int, seed: int) -> torch.Tensor:
    return torch.randn(images, 3, 4, generator=torch.Generator().manual_seed(seed))


def batch(order, conditional, unconditional):
    return torch.cat([conditional if part == "conditional" else unconditional for part in order])


class TestObserved:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("expected", ORDERS)
    @pytest.mark.parametrize("images", [1, 3])
    def test_contexts_decide_whatever_is_expected(self, order, expected, images):
        conditional, unconditional = encoded(images, 0), encoded(images, 1)
        assert observe_layout(batch(order, conditional, unconditional), conditional, unconditional, expected).parts == order

    @pytest.mark.parametrize("order", ORDERS)
    def test_the_pipelines_order_decides_where_prompt_and_negative_prompt_encode_alike(self, order):
        same = encoded(2, 0)
        assert observe_layout(batch(order, same, same), same, same, order).parts == order

    def test_a_narrower_format_is_the_same_context(self):
        conditional, unconditional = encoded(2, 0), encoded(2, 1)
        context = torch.cat([unconditional, conditional]).bfloat16()
        assert observe_layout(context, conditional, unconditional, ORDERS[2]).parts == ORDERS[2]

    @pytest.mark.parametrize(("rows", "changed"), [(4, 0), (4, 3), (3, None), (5, None)])
    def test_rows_that_read_something_else_are_not_known(self, rows, changed):
        conditional, unconditional = encoded(2, 0), encoded(2, 1)
        context = torch.cat([unconditional, conditional, conditional])[:rows].clone()
        if changed is not None:
            context[changed] += 1
        layout = observe_layout(context, conditional, unconditional, ORDERS[2])
        assert None in layout.parts
        with pytest.raises(InvalidInput, match='so it is not known which (rows|of them) carry the prompt|use rows="all"'):
            layout.rows("conditional", rows)
        assert layout.rows("all", rows) == slice(0, rows)

    def test_prompts_in_another_order_are_not_known(self):
        conditional, unconditional = encoded(2, 0), encoded(2, 1)
        interleaved = torch.stack([unconditional, conditional], dim=1).flatten(0, 1)
        assert None in observe_layout(interleaved, conditional, unconditional, ORDERS[2]).parts


class TestRows:
    @given(st.lists(st.sampled_from(["conditional", "unconditional"]), min_size=1, max_size=4), st.integers(1, 4))
    def test_rows_are_those_of_the_parts_that_carry_the_prompt(self, parts, images):
        layout, count = BatchLayout(tuple(parts)), len(parts) * images
        carrying = [number for number, part in enumerate(part for part in parts for _ in range(images)) if part == "conditional"]
        groups = [key for key, _ in itertools.groupby(parts)]
        if groups.count("conditional") > 1:
            with pytest.raises(InvalidInput, match="do not lie side by side"):
                layout.rows("conditional", count)
            return
        assert list(range(count))[layout.rows("conditional", count)] == carrying
        assert list(layout.carrying(count)) == carrying[:images]
        assert layout.images(count) == images

    def test_a_batch_that_is_not_equal_parts_is_refused(self):
        with pytest.raises(InvalidInput, match="5 rows are not 2 equal parts"):
            BatchLayout(ORDERS[2]).rows("conditional", 5)

    def test_images_are_found_in_every_part(self):
        assert BatchLayout(ORDERS[2]).of_images((0, 2), 6) == (0, 2, 3, 5)
        assert PLAIN.of_images((1,), 3) == (1,)
