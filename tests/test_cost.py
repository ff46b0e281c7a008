import time

import pytest
import torch

from neuroscope import Cost
from neuroscope.generation.metering import metered
from tests.families import tiny


class TestMetered:
    @pytest.mark.parametrize(("scale", "rows"), [(7.5, 2), (1.0, 1)])
    def test_a_row_is_one_row_of_a_batch_through_the_denoiser_once(self, pipe, scale, rows):
        with metered(pipe.unet) as meter:
            tiny.draw(pipe, ["a red circle"] * 3, num_inference_steps=2, guidance_scale=scale, height=16, width=16)
            assert meter.cost.nfe == 3 * 2 * rows
            tiny.draw(pipe, num_inference_steps=1, guidance_scale=scale, height=16, width=16)
        assert meter.cost.nfe == (3 * 2 + 1) * rows

    def test_rows_are_counted_however_the_denoiser_is_given_them(self, pipe):
        latents, context = (torch.zeros(5, *size, dtype=pipe.dtype) for size in ((4, 8, 8), (2, 96)))
        with metered(pipe.unet) as meter, torch.no_grad():
            pipe.unet(latents, 1, context)
            pipe.unet(sample=latents, timestep=1, encoder_hidden_states=context)
        assert meter.cost.nfe == 10

    def test_what_runs_before_and_after_costs_nothing(self, pipe):
        tiny.draw(pipe, num_inference_steps=1, height=16, width=16)
        with metered(pipe.unet) as meter:
            pass
        tiny.draw(pipe, num_inference_steps=1, height=16, width=16)
        assert meter.cost.nfe == 0

    def test_after_an_exception_no_hook_is_left(self, pipe):
        with pytest.raises(ZeroDivisionError), metered(pipe.unet):
            raise ZeroDivisionError
        assert tiny.hooks(pipe) == []

    def test_time_is_wall_time_and_memory_that_of_the_process(self, pipe):
        with metered(pipe.unet) as meter:
            time.sleep(0.05)
            first = meter.cost
        assert 0.05 <= first.seconds <= meter.cost.seconds
        weights = sum(each.nbytes for each in pipe.unet.parameters())
        assert weights < first.peak_bytes <= meter.cost.peak_bytes


def test_costs_add_up_and_the_highest_memory_stays():
    assert Cost(3, 1.5, 700) + Cost(4, 0.25, 900) == Cost(7, 1.75, 900)
    assert sum([Cost(2, 1.0, 10), Cost(1, 2.0, 5)], Cost()) == Cost(3, 3.0, 10)


def test_it_reads_as_one_line():
    assert str(Cost(12345, 6.78, 3 * 2**29)) == "12,345 NFE, 6.8 s, peak 1.50 GiB"
