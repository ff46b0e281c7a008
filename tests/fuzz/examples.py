"""One or more small artefacts of every kind, made by hand, with all that each may hold."""

import math

import torch

from neuroscope import (
    Atlas,
    ContextMap,
    ContextSwap,
    Cost,
    DoseResponse,
    Effects,
    LayerScores,
    NeuronMask,
    Neurons,
    NeuronScores,
    Patch,
    Provenance,
    Recording,
)
from neuroscope.core.artifacts import Artifact
from neuroscope.core.results.quality import Confidence, Fidelity
from neuroscope.core.sites import Site, Sites
from neuroscope.core.statistics import Moments
from neuroscope.evaluation._response import Dose
from neuroscope.interventions import EditReport

FROM = Provenance("family", "model", "stipple é", "Welch()")
SITES = Sites([Site("unet.0.key", 0, "mid", "key", 4, True), Site("unet.pooled", None, "", "pooled", 3, True)])
NEURONS = Neurons({"unet.0.key": [0, 3], "unet.pooled": [1]}, {site.path: site.width for site in SITES}, FROM)
DOSES = (Dose(0, "no change"), Dose(1, "top neurons"), Dose(1, "random neurons"), Dose(7, "all neurons"))
COST = Cost(54.5, 1.5, 2**30)


def double(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(math.prod(shape)))


def recording(steps: tuple[int, ...] = (), samples: bool = False) -> Recording:
    def moments(count: int) -> dict[str, Moments]:
        return {site.path: Moments(count, double(*steps, site.width), double(*steps, site.width)) for site in SITES}

    kept = {arm: {site.path: double(count, site.width).float() for site in SITES} for arm, count in (("present", 3), ("absent", 2))}
    norms = {site.path: double(site.width) for site in SITES}
    return Recording(SITES, {"present": moments(3), "absent": moments(2)}, kept if samples else {}, norms, "last", FROM)


def layer_scores() -> LayerScores:
    values = double(2, 2, 3)
    values[0, 1, 2] = math.nan
    effects = Effects((Patch((0, 1)), Patch((1,), "0-50 %")), ("a", "b"), (0, 7, 2**63), values, double(2, 3), relative=True)
    sheet = (255 * double(2, 4, 2, 2, 3)).to(torch.uint8)
    confidence = Confidence(0.9, (1,), 3, 6, 2)
    return LayerScores.of(
        effects,
        provenance=FROM,
        names=("layer 0", "layer 1"),
        cost=COST,
        columns=("none", "0-1", "1", "goal"),
        sheet=sheet,
        fidelity=Fidelity(0.5, 0.1, 0.9, 8),
        confidence=confidence,
    )


def examples() -> list[Artifact]:
    scores = {site.path: double(site.width) for site in SITES}
    report = EditReport(17, 0, 17, 0.9, 1e4, 0.05, 1e-7, 0.0, 0.2, {"stipple": 0.1, "ring": 0.3}, "all blocks", 0.9)
    factors = {path: double(2, 5).float() for path in ("unet.0.key", "unet.0.value")}
    return [
        NEURONS,
        NeuronScores(SITES, scores, scores, 0.5, True, FROM, Fidelity(math.nan, -1.0, 1.0, 3), COST, scores),
        NeuronScores(SITES, scores, provenance=FROM),
        layer_scores(),
        LayerScores((4, 7), (0.25, -1.0), FROM),
        Atlas({"stipple": layer_scores(), "0:ring": layer_scores()}),
        Atlas({"stipple": NeuronScores(SITES, scores, scores, 0.5, True, FROM, cost=COST), "": NeuronScores(SITES, scores)}),
        DoseResponse(DOSES, ("a", "b"), ("p",), (0, 2**63), double(2, 4, 1, 2), ("q",), double(4, 1, 2), FROM),
        DoseResponse(DOSES, ("a",), ("p", "q"), (1,), double(1, 4, 2, 1)),
        recording(samples=True),
        recording(steps=(2,)),
        NeuronMask(NEURONS, fill=2.0, strength=0.5, rows="all", tokens=(1, -2), steps=(0.0, 0.5)),
        ContextSwap(["unet.0.key"], double(1, 3, 4).half(), Neurons({"unet.0.key": [1]}, {"unet.0.key": 4}), provenance=FROM),
        ContextSwap(["unet.pooled"], double(2, 3, 4).float(), pooled=double(2, 4).bfloat16(), strength=0.5),
        ContextMap(["unet.0.key", "unet.0.value"], double(2, 5).float(), double(2, 5).float(), provenance=FROM, report=report),
        ContextMap(list(factors), factors, factors, strength=-1.5, rows="conditional", steps=(0.25, 1.0)),
    ]
