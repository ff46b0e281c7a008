"""Every method of `localize` on pipelines in which the answer is planted."""

import neuroscope as ns
from neuroscope.testbed import planted

LAYER_METHODS = {
    "windows": ns.LocoGen(),
    "windows of three": ns.LocoGen(window=3),
    "growing": ns.LocoGen(window="grow"),
    "sets": ns.LocoGen(search="sets"),
    "auto": ns.LocoGen(search="auto"),
    "cross": ns.CausalTracing(),
    "forced": ns.TeacherForced(),
    "patching": ns.AttributionPatching(),
    "recomputed": ns.AttributionPatching(recomputed=True, samples=1),
    "contribution": ns.AttentionContribution(against="other"),
}


def localized(graph: ns.HookGraph, method: ns.Localization, **options: object) -> ns.LayerScores:
    """The layers of a constructed pipeline, by two pairs of prompts and one seed."""
    record = planted(graph.pipe)
    given = {"pairs": 2, "keep_images": 0, "quiet": True} | dict(record.generation) | options
    return ns.localize(graph, record.concept, method, ns.LatentShare(), [0], **given)


def finds_the_planted_layer(graph: ns.HookGraph, name: str, method: ns.Localization) -> bool:
    """Whether a method puts the planted layer first; of layers that it changes together, whether the layer is among them."""
    (layer,) = planted(graph.pipe).layers
    scores = localized(graph, method)
    return layer in scores.best.layers if name in ("windows of three", "sets") else scores.top(1) == [layer]
