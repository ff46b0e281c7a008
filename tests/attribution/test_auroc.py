import numpy as np
import scipy.stats
import torch

from neuroscope import Auroc, score
from tests.laws.recordings import random_recording, recording_of


def counted(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """The share of pairs that the present prompt wins, ties counting half."""
    higher = (present[:, None] > absent[None]).mean(axis=(0, 1))
    equal = (present[:, None] == absent[None]).mean(axis=(0, 1))
    return higher + equal / 2


def test_it_is_the_share_of_pairs_that_the_present_prompt_wins():
    recording = random_recording()
    arms = [recording.samples[arm]["unet.a"].double().numpy() for arm in ("present", "absent")]
    found = score(recording, Auroc())
    np.testing.assert_allclose(found.scores["unet.a"], counted(*arms))
    for neuron in range(11):
        expected = scipy.stats.mannwhitneyu(arms[0][:, neuron], arms[1][:, neuron], method="asymptotic")
        np.testing.assert_allclose(found.p_values["unet.a"][neuron], expected.pvalue)


def test_ties_count_half():
    generator = torch.Generator().manual_seed(0)
    present, absent = (torch.randint(0, 3, (count, 50), generator=generator).double() for count in (9, 6))
    found = score(recording_of({"unet.a": present}, {"unet.a": absent}), Auroc())
    np.testing.assert_allclose(found.scores["unet.a"], counted(present.numpy(), absent.numpy()))


def test_arms_that_never_mix_are_told_apart_surely():
    arms = torch.arange(4)[:, None].double(), torch.arange(10, 14)[:, None].double()
    assert score(recording_of({"unet.a": arms[0]}, {"unet.a": arms[1]}), Auroc()).scores["unet.a"].item() == 0
    assert score(recording_of({"unet.a": arms[1]}, {"unet.a": arms[0]}), Auroc()).scores["unet.a"].item() == 1
