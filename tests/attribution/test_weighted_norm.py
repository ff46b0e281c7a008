import numpy as np
import torch

from neuroscope import WeightedNorm, score
from tests.laws.recordings import random_recording, recording_of


def test_it_is_the_difference_of_activation_norms_times_the_weights_norm():
    recording = random_recording()
    norms = [
        np.linalg.norm(values, axis=0) / np.sqrt(len(values))
        for values in (recording.samples[arm]["unet.a"] for arm in ("present", "absent"))
    ]
    expected = (norms[0] - norms[1]) * recording.outgoing["unet.a"].numpy()
    np.testing.assert_allclose(score(recording, WeightedNorm()).scores["unet.a"], expected, rtol=1e-5)


def test_neurons_that_are_larger_without_the_concept_come_last():
    present, absent = torch.tensor([[0.0, 1.0, 2.0]] * 3), torch.tensor([[3.0, 1.0, 1.0]] * 3)
    scores = score(recording_of({"unet.a": present}, {"unet.a": absent}), WeightedNorm())
    assert dict(scores.top(1)) == {"unet.a": (2,)}
    assert scores.to_frame()["neuron"].tolist() == [2, 1, 0]
