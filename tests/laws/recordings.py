"""Recordings made of numbers, without a model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from neuroscope import Moments, Provenance, Recording, Site, Sites


def recording_of(present: Mapping[str, Tensor], absent: Mapping[str, Tensor], outgoing: Mapping[str, Tensor] | None = None) -> Recording:
    """A recording of given observations [prompt, neuron] for each path; outgoing norms are one unless given."""
    sites = Sites(Site(path, layer, "mid", "value", each.shape[1], text_only=True) for layer, (path, each) in enumerate(present.items()))
    arms = {"present": present, "absent": absent}
    return Recording(
        sites=sites,
        moments={arm: {path: Moments.of(values) for path, values in each.items()} for arm, each in arms.items()},
        samples={arm: {path: values.float() for path, values in each.items()} for arm, each in arms.items()},
        outgoing=outgoing or {site.path: torch.ones(site.width, dtype=torch.float64) for site in sites},
        token="last",
        provenance=Provenance("family", "model", "concept", "record()"),
    )


def random_recording(seed: int = 0, prompts: tuple[int, int] = (9, 7), width: int = 11) -> Recording:
    """Arms of different size, whose neurons differ in mean and in spread, with outgoing norms of their own."""
    generator = torch.Generator().manual_seed(seed)
    place, spread = torch.randn(2, width, generator=generator, dtype=torch.float64)
    arms = [torch.randn(count, width, generator=generator, dtype=torch.float64) for count in prompts]
    outgoing = torch.rand(width, generator=generator, dtype=torch.float64) + 0.5
    return recording_of({"unet.a": arms[0] * spread.abs() + place}, {"unet.a": arms[1]}, {"unet.a": outgoing})
