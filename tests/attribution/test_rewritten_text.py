"""Gradients of neurons where blocks rewrite the text: against swaps of single neurons, and whether they add up."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neuroscope as ns
from neuroscope.attribution import plan_ranking
from neuroscope.attribution.neuron_gradient import _whole
from neuroscope.attribution.target_distance import TargetDistance
from neuroscope.generation.teacher_forcing import record_steps
from neuroscope.pipeline.families.joint.sd3 import SD3
from neuroscope.pipeline.noising import NoisedRun, NoiseLevels
from tests.families import tiny
from tests.families.test_joint import FAMILIES, GUIDED, POOLED, UNGUIDED, built
from tests.families.tiny import OTHER, PROMPT
from tests.numerics import close

SMALL = {"num_inference_steps": 2, "height": 32, "width": 32}
CONCEPT = ns.Concept("stipple", [PROMPT, f"{PROMPT}, large"], [OTHER, f"{OTHER}, large"])
SHARE = 0.3
#: For differences; all but Stable Diffusion 3 turn in float32.
WIDTH = {"sd3": 1e-3, "flux": 3e-2, "chroma": 3e-2, "qwen": 3e-2}
TOLERANCE = {"sd3": 1e-5, "flux": 1e-3, "chroma": 1e-3, "qwen": 1e-3}


class Step:
    """One recorded call of a random pipeline, the distance of its prediction to the other prompt's, and that distance by other means."""

    def __init__(self, family: str) -> None:
        self.name, self.graph = family, (graph := built(family))
        self.sites = graph.sites.where(role=("key", "value"))
        with torch.no_grad(), record_steps(graph, [0], stop_after=True) as recorded:
            graph.pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **SMALL, **UNGUIDED[family])
        self.inputs = recorded[0][0].inputs
        self.source, self.target = (graph.text.conditions([each]) for each in (PROMPT, OTHER))
        self.distance = TargetDistance(graph, self.inputs, self.target)
        kinds = {name: kind for kind, name in graph.family.arguments.items() if kind in ("context", "pooled", "mask")}
        told = {name: getattr(self.target, kind) for name, kind in kinds.items()}
        if (mask := self.inputs.get("attention_mask")) is not None:  # goes on with the image's tokens
            told["attention_mask"] = torch.cat([told["attention_mask"], mask[:, told["attention_mask"].shape[1] :]], dim=1)
        with torch.no_grad():
            self._there = graph.denoiser(**{**self.inputs, **told})[0]

    def drops(self, share: float) -> Tensor:
        """The drops of all neurons, [neuron]."""
        return self.distance.drops(self.sites, [share], self.source)[0][0]

    @torch.no_grad()
    def measured(self, *changes: ns.ContextSwap) -> float:
        """The distance of a prediction with changes, whose other prompt is read by rows that are added."""
        with self.graph.apply_each([changes]):
            return float((self.graph.denoiser(**self.inputs)[0] - self._there).square().mean().sqrt())

    def swap(self, sites: ns.Sites, strength: float = 1.0, neurons: ns.Neurons | None = None) -> ns.ContextSwap:
        return ns.ContextSwap.reading(self.target, sites.paths, rows="all", strength=strength, neurons=neurons)

    def difference(self, neuron: ns.Neurons, width: float) -> float:
        """How fast the distance drops with one neuron's share, where all sites read `SHARE`."""
        moved, site = self.swap(self.sites, SHARE), self.sites.at(neuron)
        ends = [self.measured(moved, self.swap(site, each, neuron)) for each in (-width, width)]
        return (ends[0] - ends[1]) / (2 * width) / (1 - SHARE)  # the second swap's way is what is left of the first's


@pytest.fixture(scope="module", params=FAMILIES)
def step(request) -> Step:
    return Step(request.param)


def test_drops_are_finite_differences_of_single_neurons_swaps(step):
    drops = dict(zip(step.sites.paths, step.drops(SHARE).split([site.width for site in step.sites]), strict=True))
    largest = max(float(each.abs().max()) for each in drops.values())
    family = step.name
    for site in (*step.sites[:2], *step.sites[-3:-1]):  # of the first block a key and a value, of the last ones a value and a key
        number = int(drops[site.path].abs().argmax())
        found = step.difference(ns.Neurons({site.path: [number]}, {site.path: site.width}), WIDTH[family])
        assert found == pytest.approx(float(drops[site.path][number]), rel=1e-2, abs=TOLERANCE[family] * largest)


def test_all_neurons_and_the_pooled_text_have_the_whole_distance(step):
    places, weights = (torch.from_numpy(each) / 2 for each in np.polynomial.legendre.leggauss(9))
    neurons = sum(float(weight * step.drops(float(place) + 0.5).sum()) for place, weight in zip(places, weights, strict=True))
    pooled = step.measured(step.swap(step.sites))  # what is left where all tokens are the other prompt's
    whole = step.measured()
    assert bool(pooled > 1e-3 * whole) is (step.name in POOLED)
    assert neurons + pooled == pytest.approx(whole, rel=2e-3)
    both = step.graph.sites.where(role=("key", "value", "pooled"))
    assert step.measured(step.swap(both)) < 1e-6 * whole


def test_chosen_sites_alone_move(step):
    sites = step.graph.sites.where(layer=1, role="value")
    _, distances = step.distance.drops(sites, [1.0], step.source)
    assert float(distances) == pytest.approx(step.measured(step.swap(sites)), rel=1e-6)


def test_the_whole_distance_is_that_at_the_source_whatever_is_left_at_the_target():
    shares = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    distances, drops = 3 - 2 * shares**2, (4 * shares).view(-1, 1) * torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert float(_whole(drops, distances, shares.tolist())) == pytest.approx(3, abs=1e-5)


def ranked(graph: ns.HookGraph, family: str, concept: ns.Concept = CONCEPT, guided: bool = False, **options) -> ns.NeuronScores:
    return ns.rank(graph, concept, ns.NeuronGradient(samples=3, **options), quiet=True, **SMALL, **(GUIDED if guided else UNGUIDED)[family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_the_cost_is_the_first_call_of_an_image_and_four_a_sample(family, guided):
    graph, options = built(family), (GUIDED if guided else UNGUIDED)[family]
    found = ranked(graph, family, guided=guided)
    first = 2 if guided and family == "sd3" else 1  # FLUX calls once for each part
    assert found.cost.nfe == 2 * first + 4 * 3
    assert plan_ranking(graph, CONCEPT, ns.NeuronGradient(samples=3), **SMALL, **options).nfe == found.cost.nfe
    assert not [path for path in tiny.hooks(graph.pipe) if path.startswith("transformer.")]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_are_computed_again_change_no_score(family):
    graph = built(family)
    if not graph.family.recomputes:
        with pytest.raises(ns.InvalidInput, match="Chroma.* has no gradient checkpointing that works; leave it out"):
            ranked(graph, family, recompute=True)
        return
    kept, again = (ranked(graph, family, recompute=each) for each in (False, True))
    assert again.cost.nfe == kept.cost.nfe + 3
    for path, scores in kept.scores.items():
        close(again.scores[path], scores)


@cache
def in_precision(family: str, dtype: torch.dtype) -> Tensor:
    """The scores of all neurons in a number format."""
    pipe = copy.deepcopy(built(family).pipe)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, dtype)
    scores = ranked(ns.HookGraph(pipe), family)
    return torch.cat([scores.scores[path] for path in scores.sites.paths])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_in_half_precision_are_those_of_float32_but_for_rounding(family, dtype):
    expected, found = in_precision(family, torch.float32), in_precision(family, dtype)
    assert found.dtype == torch.float64
    # predictions for the two prompts differ by about a seventieth of their size, so that rounding counts as much more in the difference;
    # Chroma's modulations pass a network of their own
    more = 140 if family == "chroma" else 70
    torch.testing.assert_close(found, expected, rtol=0, atol=more * torch.finfo(dtype).eps * float(expected.abs().max()))


def test_what_the_image_reads_of_a_sequence_of_both_is_changed_in_the_rows_of_the_text_alone():
    graph = built("flux")
    (site,) = graph.sites.where(layer=graph.sites.layers[-1], role="value")
    seen: list[Tensor] = []
    with graph.change_reads(graph.sites.at([site.path]), lambda text, _call: torch.zeros_like(text)):
        handle = graph.module(site).register_forward_hook(lambda _module, _args, output: seen.append(output))
        graph.pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **SMALL | {"num_inference_steps": 1})
        handle.remove()
    own, read = seen
    tokens = graph.text.token_count
    assert own[:, :tokens].any()
    assert not read[:, :tokens].any()
    assert torch.equal(own[:, tokens:], read[:, tokens:])


def test_a_control_nets_results_at_one_noise_level_are_refused():
    step = {"hidden_states": torch.zeros(1, 4, 8, 8), "timestep": torch.ones(1), "block_controlnet_hidden_states": [torch.zeros(1)]}
    with pytest.raises(ns.InvalidInput, match="block_controlnet_hidden_states by another network, which holds for one noise level"):
        NoisedRun(NoiseLevels((), "flow_prediction", 1.0), step, step["hidden_states"], SD3.arguments)
