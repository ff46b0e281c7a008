"""What a run will cost is counted without computing it: the pipeline's own loop runs around a denoiser that predicts zeros."""

import contextlib

import diffusers
import numpy as np
import pytest

import neuroscope as ns
from neuroscope import CausalTracing, HookGraph, InvalidInput, LocoGen, NeuronAblation, localize
from neuroscope.attribution import plan_ranking
from neuroscope.attribution.recording import record
from neuroscope.core.results.quality import Plan
from neuroscope.evaluation import evaluate, generate, plan_evaluation
from neuroscope.generation.dry_run import plan_images, predicting_zeros, rows_of_run
from neuroscope.localization import plan_localization
from neuroscope.testbed.construction.pipelines import generation_of
from tests.families import tiny
from tests.localization.planted import SMALL

SCHEDULERS = ("HeunDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler")


def counted(graph, run) -> int:
    with tiny.counted(graph.denoiser) as calls:
        run()
    return sum(calls)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_rows_are_counted_whatever_the_scheduler(fresh, name, guidance):
    fresh.scheduler = getattr(diffusers, name).from_config(fresh.scheduler.config, skip_prk_steps=True)
    graph, options = HookGraph(fresh), {"num_inference_steps": 3, "guidance_scale": guidance}
    expected = counted(graph, lambda: generate(graph, None, [tiny.PROMPT], [0], **options))
    assert rows_of_run(graph, options, tiny.PROMPT) == expected


@pytest.mark.parametrize("family", tiny.PIPELINES)
def test_rows_are_counted_on_every_family(family):
    graph = HookGraph(tiny.PIPELINES[family]())
    options = generation_of(family) | {"num_inference_steps": 2}
    expected = counted(graph, lambda: generate(graph, None, [tiny.PROMPT] * 2, [0, 1], **options))
    assert plan_images(graph, [tiny.PROMPT] * 2, options) == Plan(2, expected)


def test_the_denoiser_is_put_back_where_the_run_fails(graph, untouched):
    with pytest.raises(ZeroDivisionError), predicting_zeros(graph):
        raise ZeroDivisionError
    assert "forward" not in vars(graph.denoiser)
    assert tiny.draw(graph.pipe).equal(untouched)


def test_evaluate_costs_what_its_plan_says(graph):
    masks = {"mask": tiny.mask(graph)}
    options = {"prompts": [tiny.PROMPT, tiny.OTHER], "seeds": [0, 1], "num_inference_steps": 2}
    for controls in (True, False):
        plan = plan_evaluation(graph, masks, **options, controls=controls)
        run = counted(graph, lambda c=controls: evaluate(graph, masks, **options, metrics=[Mean()], controls=c, quiet=True))
        assert plan == Plan(12 if controls else 4, run)


class Mean:
    name = "mean"

    def __call__(self, images, prompts):
        return np.zeros(len(images))


def test_recordings_cost_what_their_plan_says(graph, concept):
    sites, options = graph.sites.where(layer=8, role="query"), {"num_inference_steps": 2}
    expected = counted(graph, lambda: record(graph, concept, sites, quiet=True, **options))
    assert plan_images(graph, [*concept.present, *concept.absent], options) == Plan(12, expected)
    assert plan_images(graph, [], options) == Plan(0, 0)


def test_growing_and_set_searches_and_budgets_stay_below_their_plan(graph, concept):
    for method in (LocoGen(search="sets"), LocoGen(search="auto", budget=0.5), LocoGen(search="auto", budget=0.05)):
        asked = SMALL | {"seeds": [0], "pairs": 2}
        plan = plan_localization(graph, concept, method, ns.LatentShare(), **asked)
        with pytest.warns(UserWarning, match="budget") if "0.05" in repr(method) else contextlib.nullcontext():
            cost = localize(graph, concept, method, ns.LatentShare(), **asked, quiet=True).cost
        assert plan.is_bound
        assert 0 < cost.nfe <= plan.nfe


def test_a_plan_says_itself_and_refuses_no_numbers():
    assert str(Plan(1, 24)) == "1 image, 24 NFE"
    assert str(Plan(1200, 28_800.4, is_bound=True)) == "at most 1,200 images, 28,800 NFE"
    with pytest.raises(InvalidInput, match="the plan's nfe=-1"):
        Plan(1, -1)
    with pytest.raises(InvalidInput, match="the plan's images=-2"):
        Plan(-2, 1)


def test_exact_ablation_costs_what_its_plan_says(graph, concept):
    method = NeuronAblation(roles="value", group=16)
    plan = plan_ranking(graph, concept, method, layers=8, pairs=1, **SMALL)
    assert plan.nfe == ns.rank(graph, concept, method, layers=8, pairs=1, quiet=True, **SMALL).cost.nfe
    assert plan.images == 2 + sum(-(-site.width // 16) for site in graph.sites.where(layer=8, role="value"))


def test_causal_tracing_makes_the_clean_run_again_in_every_batch(graph, concept):
    for size in (4, 64):
        asked = SMALL | {"seeds": [0], "pairs": 1, "batch_size": size}
        plan = plan_localization(graph, concept, CausalTracing(), ns.LatentShare(), **asked)
        runs = 2 + len([each for each in graph.components if each.kind == "cross"])
        assert plan.images == runs + -(-runs // (size - 1))
        assert plan.nfe == 2 * plan.images
