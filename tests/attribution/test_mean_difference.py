import numpy as np

from neuroscope import MeanDifference, score
from tests.laws.recordings import random_recording


def test_it_is_the_difference_of_the_samples_means():
    recording = random_recording()
    means = [recording.samples[arm]["unet.a"].double().mean(dim=0) for arm in ("present", "absent")]
    np.testing.assert_allclose(score(recording, MeanDifference()).scores["unet.a"], means[0] - means[1], atol=1e-6)


def test_weighted_it_is_multiplied_by_the_outgoing_norms():
    recording = random_recording()
    plain, weighted = (score(recording, MeanDifference(weighted=each)).scores["unet.a"] for each in (False, True))
    np.testing.assert_allclose(weighted, plain * recording.outgoing["unet.a"])
