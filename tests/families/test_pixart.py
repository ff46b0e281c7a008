"""PixArt's own: its prompts, its predictions, the size of its images, and every method on pipelines in which the answer is planted."""

from functools import cache

import pytest

import neuroscope as ns
from neuroscope.testbed import build, planted
from tests.families import tiny

SMALL = {"num_inference_steps": 2, "use_resolution_binning": False, "height": 32, "width": 32}
LAYER_METHODS = {
    "windows": ns.LocoGen(),
    "windows of three": ns.LocoGen(window=3),
    "growing": ns.LocoGen(growing=True),
    "sets": ns.LocoGen(sets=2),
    "auto": ns.LocoGen(method="auto"),
    "cross": ns.CausalTracing(),
    "forced": ns.TeacherForced(),
    "patching": ns.AttributionPatching(),
    "recomputed": ns.AttributionPatching(recomputed=True, samples=1),
    "contribution": ns.AttentionContribution(against="other"),
}


@cache
def graph_of(plant: str) -> ns.HookGraph:
    return ns.HookGraph(build("pixart", plant, 0))


@pytest.fixture(scope="module")
def graph() -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES["pixart"]())


def localized(plant: str, method, **options):
    graph = graph_of(plant)
    record = planted(graph.pipe)
    given = {"pairs": 2, "keep_images": 0, "quiet": True} | record.generation | options
    return ns.localize(graph, record.concept, method, ns.LatentShare(), [0], **given)
