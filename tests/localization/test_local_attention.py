import pytest
import torch

from neuroscope import HookGraph
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing
from neuroscope.localization.screening.local_attention import for_each_attention
from tests.families import tiny
from tests.localization.by_hand import Prediction
from tests.localization.planted import SMALL, STIPPLE

SEED = 3
GENERATION = {"sd1": SMALL, "if-1": {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 8, "width": 8, "clean_caption": False}}
SOME = [0, 3, 5]


@pytest.fixture(scope="module", params=["sd1", "if-1"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family) -> HookGraph:
    return HookGraph(tiny.PIPELINES[family]())


@pytest.fixture(scope="module")
def hand(model, family) -> Prediction:
    """The second step of two, written out."""
    return Prediction(model.pipe, STIPPLE[0], SEED, 1, GENERATION[family])


@pytest.fixture(scope="module")
def frame(model, hand) -> StepInput:
    return StepInput(1, 2, hand.inputs, hand.source.float())


def chosen(model: HookGraph, tokens=None) -> torch.Tensor:
    found = torch.zeros(model.spec.token_count, dtype=torch.bool)
    found[slice(None) if tokens is None else tokens] = True
    return found


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """To rounding: of a layer's largest number, as parts of single tokens are small."""
    for each, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(each[0].double(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


class TestEveryLayer:
    def test_what_it_puts_out_is_attention_written_out(self, model, frame, hand):
        expected = [attention.said() + attention.bias for attention in map(hand.attention, range(len(hand.layers)))]
        close(for_each_attention(TeacherForcing(model), frame, lambda attention: attention.output), expected)

    def test_with_another_prompt_only_the_text_changes(self, model, frame, hand):
        """The image's own queries (and on DeepFloyd keys and values) stay those of the run; so do all earlier layers."""
        other = model.text.conditions([STIPPLE[0][1]])
        moved = for_each_attention(TeacherForcing(model), frame, lambda attention: attention.of(other) - attention.output)
        layers = range(len(hand.layers))
        expected = [hand.attention(layer, other=True).said() - hand.attention(layer).said() for layer in layers]
        assert min(float(each.abs().max()) for each in expected) > 1e-3
        close(moved, expected)

    def test_the_part_of_some_tokens_has_the_weights_of_all(self, model, frame, hand):
        found = for_each_attention(TeacherForcing(model), frame, lambda attention: attention.from_tokens(chosen(model, SOME)))
        close(found, [hand.attention(layer).said(SOME) for layer in range(len(hand.layers))])

    def test_parts_of_tokens_and_of_the_picture_add_up_to_what_it_puts_out(self, model, frame, hand):
        """The image's part is DeepFloyd's alone, whose softmax runs over both; with the bias all is there."""
        tokens = model.spec.token_count
        found = for_each_attention(TeacherForcing(model), frame, lambda attention: (attention.output, attention.from_tokens(chosen(model))))
        layers = [hand.attention(layer) for layer in range(len(hand.layers))]
        close([output - text for output, text in found], [each.said(slice(tokens, None)) + each.bias for each in layers])


def test_a_visit_sees_the_layers_in_their_order_and_counts_what_is_computed_again(model, frame):
    forcing, rows = TeacherForcing(model), []
    for look in (lambda attention: None, lambda attention: attention.output, lambda attention: (attention.output, attention.output)):
        with tiny.counted(model.denoiser) as calls:
            seen = for_each_attention(forcing, frame, lambda attention, look=look: (look(attention), attention.layer)[1])
        assert tuple(seen) == model.sites.layers
        assert calls == [1]
        rows.append(forcing.nfe)
    assert rows[0] == 0
    assert 0 < rows[1] < 1
    assert rows[2] - rows[1] == pytest.approx(2 * rows[1])


def test_no_hook_is_left_by_a_visit_nor_by_a_look_that_fails(model, frame):
    for look in (lambda attention: attention.output, lambda attention: 1 / 0):
        try:
            for_each_attention(TeacherForcing(model), frame, look)
        except ZeroDivisionError:
            failed = look
        assert tiny.hooks(model.pipe) == []
    assert failed is look
