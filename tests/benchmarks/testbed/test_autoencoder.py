import numpy as np
import torch

from benchmarks.testbed.autoencoder import as_tensor, normalise_latents
from neuroscope.testbed.architectures import build_autoencoder
from neuroscope.testbed.world import scenes
from tests.numerics import close


def test_images_are_drawn_between_minus_one_and_one_as_the_seed_says():
    first, again, other = (as_tensor(scenes()[:4], np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 3, 64, 64)
    assert -1 <= first.min() < first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_normalised_latents_change_no_reconstruction():
    torch.manual_seed(0)
    model = build_autoencoder().double().eval()
    images = as_tensor(scenes()[:24], np.random.default_rng(0)).double()
    with torch.no_grad():
        before = model.encode(images).latent_dist
        rebuilt, deviation = model.decode(before.mean).sample, before.mean.std(dim=(0, 2, 3))
        normalise_latents(model, images)
        after = model.encode(images).latent_dist
        close(model.decode(after.mean).sample, rebuilt)
    close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), scale=float(before.mean.abs().max() / deviation.min()), dtype=torch.float64)
    close(after.mean.std(dim=(0, 2, 3)), torch.ones(4), dtype=torch.float64)
    close(after.std, before.std / deviation[:, None, None])
    assert model.config.scaling_factor == 1.0
