import numpy as np
import pytest
import scipy.stats
import torch

from neuroscope import InvalidInput, Welch, score
from tests.laws.recordings import random_recording, recording_of


def test_it_is_welchs_test_on_the_full_samples(recording):
    for each in (recording, random_recording()):
        found = score(each, Welch())
        for path in each.sites.paths:
            arms = [each.samples[arm][path].double().numpy() for arm in ("present", "absent")]
            varied = np.concatenate(arms).std(axis=0) > 1e-4
            expected = scipy.stats.ttest_ind(*arms, equal_var=False)
            np.testing.assert_allclose(found.scores[path][varied], expected.statistic[varied], rtol=1e-3)
            np.testing.assert_allclose(found.p_values[path][varied], expected.pvalue[varied], rtol=1e-2)


def test_it_is_the_published_formula():
    recording = random_recording()
    present, absent = (recording.samples[arm]["unet.a"].double().numpy() for arm in ("present", "absent"))
    error = np.sqrt(present.var(axis=0, ddof=1) / len(present) + absent.var(axis=0, ddof=1) / len(absent))
    found = score(recording, Welch()).scores["unet.a"]
    np.testing.assert_allclose(found, (present.mean(axis=0) - absent.mean(axis=0)) / error, rtol=1e-5)


def test_chances_are_uniform_where_nothing_differs():
    generator = torch.Generator().manual_seed(0)
    arms = [{"unet.a": torch.randn(8, 4000, generator=generator, dtype=torch.float64)} for _ in range(2)]
    chances = score(recording_of(*arms), Welch()).p_values["unet.a"].numpy()
    assert scipy.stats.kstest(chances, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("present", "absent"), [(1.0, 0.0), (-1.0, 0.0), (3.0, 1.0), (1e-30, 2e-30), (1e30, -1e30)])
def test_constant_arms_that_differ_are_as_far_apart_as_rounding_tells(present, absent):
    """The standard error is then what rounding may make of the means: 1e-12 of the sum of their sizes."""
    arms = ({"unet.a": torch.full((4, 1), each, dtype=torch.float64)} for each in (present, absent))
    scores = score(recording_of(*arms), Welch())
    assert scores.scores["unet.a"].item() == pytest.approx((present - absent) / (1e-12 * (abs(present) + abs(absent))), rel=1e-12)
    assert scores.p_values["unet.a"].item() == 0


def test_a_method_whose_scores_are_not_finite_is_named_with_the_site():
    class Broken(Welch):
        def __call__(self, evidence):
            found = super().__call__(evidence)
            return found._replace(score=found.score / 0)

        def __repr__(self):
            return "Broken()"

    recording = random_recording()
    with pytest.raises(InvalidInput, match=r"Broken\(\) gives [0-9]+ scores of unet.a that are NaN or infinite"):
        score(recording, Broken())
