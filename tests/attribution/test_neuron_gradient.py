"""Expected gradients on noised images: the gradient against finite differences, what is drawn, what it costs, what it finds."""

import pytest
import scipy.stats
import torch

import neuroscope as ns
from neuroscope.attribution import neuron_gradient, plan_ranking
from neuroscope.attribution.neuron_gradient import GRADIENT_MEMORY
from neuroscope.attribution.target_distance import TargetDistance
from neuroscope.generation.teacher_forcing import record_steps
from neuroscope.pipeline.hooking import recomputing
from neuroscope.pipeline.hooking.recomputing import can_recompute
from neuroscope.testbed.plant import PLANT
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, concept_of

CONCEPT = concept_of(STIPPLE)


@pytest.fixture(scope="module")
def graph() -> ns.HookGraph:
    return ns.HookGraph(tiny.sd1())


def rank(graph, **options) -> ns.NeuronScores:
    method = ns.NeuronGradient(samples=options.pop("samples", 4))
    return ns.rank(graph, options.pop("concept", CONCEPT), method, layers=9, quiet=True, **SMALL | options)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_gradients_are_finite_differences_along_the_way(graph, share):
    with record_steps(graph, [0], stop_after=True) as recorded:
        graph.pipe(STIPPLE[0][0], generator=torch.Generator().manual_seed(0), output_type="latent", **SMALL)
    source, target = (graph.text.conditions([text]) for text in STIPPLE[0])
    distance = TargetDistance(graph, recorded[0][0].inputs, target)
    sites = graph.sites.where(layer=[8, 9], role=("key", "value"))
    slopes, _ = distance.gradients(sites, [share])
    read = [dict(graph.text.read_each(sites, each)) for each in (source, target)]
    changes = {site.path: (graph.module(site)(read[1][site]) - graph.module(site)(read[0][site])).detach() for site in sites}
    found = sum((slopes[path] * changes[path]).sum().item() for path in sites.paths)
    width = 1e-4
    before, after = (distance.gradients(sites, [share + by])[1].item() for by in (-width, width))
    assert found == pytest.approx((before - after) / (2 * width), rel=1e-4)


def test_the_distance_is_nothing_where_every_site_reads_the_target(graph):
    with record_steps(graph, [0], stop_after=True) as recorded:
        graph.pipe(STIPPLE[0][0], generator=torch.Generator().manual_seed(0), output_type="latent", **SMALL)
    distance = TargetDistance(graph, recorded[0][0].inputs, graph.text.conditions([STIPPLE[0][1]]))
    _, far = distance.gradients(graph.sites.where(role=("key", "value")), [0.0])
    _, near = distance.gradients(graph.sites.where(role=("key", "value")), [1.0])
    assert near.item() < 1e-9 < far.item()


def test_weights_and_their_gradients_are_left_as_they_were(graph):
    before = {name: (each.requires_grad, each.grad) for name, each in graph.denoiser.named_parameters()}
    rank(graph)
    assert before == {name: (each.requires_grad, each.grad) for name, each in graph.denoiser.named_parameters()}


@pytest.mark.parametrize(("samples", "images", "guidance"), [(1, 1, 3.0), (3, 3, 1.0), (5, len(STIPPLE), 3.0)])
def test_the_cost_is_the_first_call_of_an_image_and_four_a_sample(graph, samples, images, guidance):
    found = rank(graph, samples=samples, guidance_scale=guidance)
    assert found.cost.nfe == images * (2 if guidance > 1 else 1) + 4 * samples
    called = SMALL | {"guidance_scale": guidance}
    assert plan_ranking(graph, CONCEPT, ns.NeuronGradient(samples=samples), layers=9, **called).nfe == found.cost.nfe


def test_the_number_of_steps_costs_nothing(graph):
    assert rank(graph).cost.nfe == rank(graph, num_inference_steps=SMALL["num_inference_steps"] + 7).cost.nfe


def test_standard_errors_and_p_values_are_over_samples(graph):
    assert rank(graph, samples=2).stderr == {}
    found = rank(graph, samples=3)
    assert all((found.stderr[path] > 0).all() and (found.p_values[path] <= 1).all() for path in found.sites.paths)


def test_p_values_ask_for_an_effect_of_a_size_and_scores_do_not(graph):
    options = {"layers": 9, "quiet": True, **SMALL}
    every, large = (ns.rank(graph, CONCEPT, ns.NeuronGradient(samples=4, least=least), **options) for least in (0.0, 0.02))
    for path, scores in every.scores.items():
        assert torch.equal(scores, large.scores[path])
        expected = scipy.stats.t.sf((scores - 0.02) / every.stderr[path], 3)
        torch.testing.assert_close(large.p_values[path], torch.from_numpy(expected))


@pytest.mark.parametrize("method", [ns.NeuronGradient, ns.IntegratedGradients])
def test_a_share_below_nothing_is_refused(method):
    with pytest.raises(ns.InvalidInput, match=r"least=-0.1 is not allowed; give at least 0"):
        method(least=-0.1)


def test_more_seeds_are_more_images(graph):
    assert rank(graph, samples=6, seeds=[0, 1]).cost.nfe == 6 + 4 * 6


def test_prompts_that_say_the_same_are_warned_of(graph):
    pipe = tiny.sd1()
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight.data.zero_()
    with pytest.warns(UserWarning, match="the other prompt changes no prediction, so no neuron can be found; give other prompts"):
        found = rank(ns.HookGraph(pipe))
    assert all((each == 0).all() for each in found.scores.values())


@pytest.mark.parametrize("metric", [ns.ImageShare(), ns.testbed.Reader("style", "stipple")])
def test_a_metric_that_would_be_ignored_is_refused_before_any_call(graph, metric):
    with (
        tiny.counted(graph.denoiser) as calls,
        pytest.raises(ns.InvalidInput, match=r"would be ignored: NeuronGradient\(samples=4\) makes no"),
    ):
        rank(graph, metric=metric)
    with pytest.raises(ns.InvalidInput, match="would be ignored"):
        plan_ranking(graph, CONCEPT, ns.NeuronGradient(), metric=metric, **SMALL)
    assert calls == []


class TestRecomputing:
    """Gradient checkpointing changes nothing but memory and cost."""

    def ranked(self, graph, **options):
        return ns.rank(graph, CONCEPT, ns.NeuronGradient(samples=4, **options), layers=[8, 9], quiet=True, batch_size=32, **SMALL)

    def test_scores_are_the_same_for_one_nfe_more_a_sample(self, graph):
        kept, again = self.ranked(graph, recompute=False), self.ranked(graph, recompute=True)
        for path, scores in kept.scores.items():
            torch.testing.assert_close(again.scores[path], scores, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(again.stderr[path], kept.stderr[path], rtol=1e-9, atol=1e-12)
        assert again.cost.nfe == kept.cost.nfe + 4
        plans = [plan_ranking(graph, CONCEPT, ns.NeuronGradient(samples=4, recompute=each), layers=9, **SMALL) for each in (False, True)]
        assert [plan.nfe for plan in plans] == [kept.cost.nfe, again.cost.nfe]

    def test_fewer_bytes_are_kept(self, graph):
        sizes = []
        for recompute in (False, True):
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda each, kept=kept: kept.append(each.numel()) or each, lambda each: each):
                self.ranked(graph, recompute=recompute)
            sizes.append(sum(kept))
        assert sizes[1] < 0.5 * sizes[0]

    @pytest.mark.parametrize("was_on", [False, True])
    def test_the_denoiser_is_as_it_was(self, was_on):
        pipe = tiny.sd1()
        if was_on:
            pipe.unet.enable_gradient_checkpointing()

        def state():
            return [[vars(each).get(mark) for mark in recomputing._MARKS] for each in pipe.unet.modules()]

        before = state()
        self.ranked(ns.HookGraph(pipe), recompute=True)
        assert state() == before

    def test_it_is_off_after_an_error(self, monkeypatch):
        pipe = tiny.sd1()
        monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            self.ranked(ns.HookGraph(pipe), recompute=True)
        assert not pipe.unet.is_gradient_checkpointing

    @pytest.mark.parametrize(("fits", "more"), [(GRADIENT_MEMORY, 0), (GRADIENT_MEMORY - 1, 4)])
    def test_by_default_it_is_there_where_gradients_do_not_fit(self, graph, monkeypatch, fits, more):
        expected = self.ranked(graph, recompute=False).cost.nfe
        monkeypatch.setattr(neuron_gradient, "fitted_batch_size", lambda *_: fits)
        assert self.ranked(graph).cost.nfe == expected + more

    def test_a_model_without_it_is_refused_where_it_is_asked_for(self, graph, monkeypatch):
        monkeypatch.setattr(type(graph.denoiser), "_supports_gradient_checkpointing", False)
        with pytest.raises(ns.InvalidInput, match="not possible: UNet2DConditionModel has no gradient checkpointing that works"):
            self.ranked(graph, recompute=True)
        monkeypatch.setattr(neuron_gradient, "fitted_batch_size", lambda *_: 1)
        self.ranked(graph)

    @pytest.mark.slow
    @pytest.mark.parametrize("family", ns.testbed.FAMILIES)
    def test_every_familys_scores_are_the_same_where_it_is_possible(self, family):
        pipe = ns.testbed.build(family, "layer", 0)
        graph, plant = ns.HookGraph(pipe), ns.testbed.planted(pipe)

        def ranked(recompute):
            method = ns.NeuronGradient(samples=2, recompute=recompute)
            return ns.rank(graph, plant.concept, method, quiet=True, **plant.generation)

        try:
            kept = ranked(False)
        except ns.InvalidInput as error:  # no noise levels
            pytest.skip(str(error))
        if not can_recompute(graph.family, graph.denoiser):
            with pytest.raises(ns.InvalidInput, match="recompute=True is not possible"):
                ranked(True)
            return
        again = ranked(True)
        for path, scores in kept.scores.items():
            torch.testing.assert_close(again.scores[path], scores, rtol=1e-9, atol=1e-12)

    def test_it_is_on_or_off(self, untyped):
        with pytest.raises(ns.InvalidInput, match="recompute"):
            ns.NeuronGradient(recompute=1)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_sample_is_refused(samples):
    with pytest.raises(ns.InvalidInput, match=f"samples={samples} is not"):
        ns.NeuronGradient(samples=samples)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [PLANT.style, None], ids=["the layer", "all layers"])
def test_the_bundled_models_planted_neurons_come_first_for_under_200_nfe(layers):
    from benchmarks.style_pairs import concept

    graph = ns.HookGraph(ns.testbed.load("sd1"))
    (path,) = graph.sites.where(layer=PLANT.style, role="value").paths
    width = graph.sites.at([path])[0].width
    planted = ns.Neurons({path: PLANT.neurons(width)}, {path: width})
    found = ns.rank(graph, concept("style"), layers=layers, quiet=True, **ns.testbed.GENERATION)
    assert found.cost.nfe <= 200
    assert (found.top(PLANT.neuron_count) & planted).count / PLANT.neuron_count >= 0.96
