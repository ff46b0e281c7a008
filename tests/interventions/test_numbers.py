"""What objects of numbers are made of: finite, of the right sizes, and objects where objects are meant."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuroscope import (
    ContextMap,
    ContextSwap,
    Cost,
    Effects,
    InvalidInput,
    LayerScores,
    NeuronMask,
    Neurons,
    NeuronScores,
    Patch,
    Recording,
    load,
    save,
)
from neuroscope.core.results.quality import Confidence, Fidelity
from neuroscope.core.statistics import Moments
from neuroscope.interventions import EditReport
from tests.fuzz.examples import COST, FROM, NEURONS, SITES, double, recording

BAD = [math.nan, math.inf, -math.inf]
REPORT = {"keys": 1, "kept": 0, "rank": 1, "penalty": 1.0, "condition": 1.0} | dict.fromkeys(
    ("residual", "outside", "preserved", "unrelated"), 0.0
)
FACTOR, CONTEXT = torch.ones(1, 2), torch.ones(1, 3, 4)
EFFECTS = ((Patch((0,)),), ("a",), (0,))


def changed(tensor: torch.Tensor, value: float) -> torch.Tensor:
    made = tensor.clone()
    made.view(-1)[-1] = value
    return made


def scores(**changes) -> NeuronScores:
    numbers = {site.path: double(site.width) for site in SITES}
    return NeuronScores(**{"sites": SITES, "scores": numbers, "p_values": numbers, "provenance": FROM} | changes)


MADE = {
    "mask's fill": lambda bad: NeuronMask(NEURONS, fill=bad),
    "mask's fills": lambda bad: NeuronMask(
        NEURONS, fill={path: changed(torch.zeros(len(chosen)), bad) for path, chosen in NEURONS.items()}
    ),
    "mask's strength": lambda bad: NeuronMask(NEURONS, strength=bad),
    "mask's steps": lambda bad: NeuronMask(NEURONS, steps=(0.0, bad)),
    "map's factor": lambda bad: ContextMap(["a"], FACTOR, changed(FACTOR, bad)),
    "map's strength": lambda bad: ContextMap(["a"], FACTOR, FACTOR, strength=bad),
    "swap's context": lambda bad: ContextSwap(["a"], changed(CONTEXT, bad)),
    "swap's half context": lambda bad: ContextSwap(["a"], changed(CONTEXT.half(), bad)),
    "swap's pooled": lambda bad: ContextSwap(["a"], CONTEXT, pooled=changed(torch.ones(1, 4), bad)),
    "swap's strength": lambda bad: ContextSwap(["a"], CONTEXT, strength=bad),
    **{f"report's {name}": lambda bad, name=name: EditReport(**REPORT | {name: bad}) for name in list(REPORT)[3:]},
    "report's r_squared": lambda bad: EditReport(**REPORT, r_squared=bad),
    "report's move of the neighbours of ring": lambda bad: EditReport(**REPORT, neighbours={"ring": bad}),
    "moments' mean": lambda bad: Moments(2, changed(double(3), bad), double(3)),
    "moments' deviation": lambda bad: Moments(2, double(3), changed(double(3), bad)),
    "scores": lambda bad: scores(scores={site.path: changed(double(site.width), bad) for site in SITES}),
    "p-values": lambda bad: scores(p_values={site.path: changed(double(site.width), bad) for site in SITES}),
    "neutral": lambda bad: scores(neutral=bad),
    "layers' scores": lambda bad: LayerScores((0, 1), (0.0, bad)),
    "fidelity's interval": lambda bad: Fidelity(0.5, bad, 0.9, 8),
    "confidence": lambda bad: Confidence(bad, (1,), 3, 6),
    "cost's rows": lambda bad: Cost(nfe=bad),
    "cost's seconds": lambda bad: Cost(seconds=bad),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", MADE)
def test_what_is_not_finite_is_refused(name, bad):
    with pytest.raises(InvalidInput, match="finite|NaN or infinity|part of the schedule"):
        MADE[name](bad)


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_effects_may_be_unknown_and_not_infinite(bad):
    assert Effects(*EFFECTS, torch.full((1, 1, 1), math.nan).double(), torch.ones(1, 1).double()).total_mean() == 1
    with pytest.raises(InvalidInput, match="the effects hold infinity"):
        Effects(*EFFECTS, torch.full((1, 1, 1), bad).double(), torch.ones(1, 1).double())
    with pytest.raises(InvalidInput, match="the total effects hold infinity"):
        Effects(*EFFECTS, torch.ones(1, 1, 1).double(), torch.full((1, 1), bad).double())


WRONG = {
    "a mask of scores": (lambda: NeuronMask(scores()), "what the mask changes is a NeuronScores, which does not fit"),
    "a mask of a list": (lambda: NeuronMask([1, 2, 3]), "what the mask changes is a list, which does not fit"),
    "a mask of a class": (lambda: NeuronMask(NeuronScores), "what the mask changes is the class NeuronScores, not an object of it"),
    "a mask of a string": (lambda: NeuronMask("value"), "what the mask changes is the string 'value', not an object"),
    "a fill of text": (lambda: NeuronMask(NEURONS, fill="1"), "fill='1' is no number"),
    "a fill of lists": (lambda: NeuronMask(NEURONS, fill={path: [1.0] for path in NEURONS}), "the fill of unet.0.key is a list"),
    "a fill beyond float32": (lambda: NeuronMask(NEURONS, fill=1e39), r"fill=1e\+39 is not allowed"),
    "a strength of text": (lambda: NeuronMask(NEURONS, strength="1"), "strength='1' is no number"),
    "tokens of text": (lambda: NeuronMask(NEURONS, tokens=["a"]), "a token='a' is no whole number"),
    "one token": (lambda: NeuronMask(NEURONS, tokens=3), "tokens=3 are no positions"),
    "no token": (lambda: NeuronMask(NEURONS, tokens=()), "the mask has no token"),
    "one number of steps": (lambda: NeuronMask(NEURONS, steps=5), "steps=5 is not a part of the schedule"),
    "steps of text": (lambda: NeuronMask(NEURONS, steps=("0", "1")), "is not a part of the schedule"),
    "the swap of one string": (lambda: ContextSwap("unet", CONTEXT), "the swap's paths are a list of strings, not the one string 'unet'"),
    "an empty context": (lambda: ContextSwap(["a"], torch.ones(1, 0, 4)), r"the swap's context has shape \(1, 0, 4\)"),
    "a context of text": (lambda: ContextSwap(["a"], "a star"), "the swap's context is the string 'a star'"),
    "the map of one string": (lambda: ContextMap("unet", FACTOR, FACTOR), "the map's paths are a list of strings"),
    "factors of lists": (lambda: ContextMap(["a"], [1.0], [1.0]), r"the map's factors have shapes \(\) and \(\)"),
    "half a neuron": (lambda: Neurons({"a": [0.7]}, {"a": 4}), "a neuron of a=0.7 is no whole number"),
    "a neuron yes or no": (lambda: Neurons({"a": [True]}, {"a": 4}), "a neuron of a=True is no whole number"),
    "one neuron": (lambda: Neurons({"a": 3}, {"a": 4}), "the neurons of a are a list of whole numbers, not 3"),
    "neurons of a list": (lambda: Neurons([1], {"a": 4}), "indices is a list, which does not fit"),
    "a width of none": (lambda: Neurons({"a": [0]}, {"a": "4"}), "the width of a='4' is no whole number"),
    "too many scores": (lambda: scores(scores={site.path: double(site.width + 1) for site in SITES}), "are 5, and it has 4 neurons"),
    "a site without scores": (lambda: scores(scores={"unet.pooled": double(3)}), "scores and sites differ in unet.0.key"),
    "a site without p-value": (lambda: scores(p_values={"unet.pooled": double(3)}), "p_values and sites differ in unet.0.key"),
    "p-values of 2": (lambda: scores(p_values={site.path: 2 + double(site.width) for site in SITES}), "a p-value is outside 0 to 1"),
    "more scores than layers": (lambda: LayerScores((0,), (1.0, 2.0)), "1 layer has 2 scores and 0 names"),
    "more names than layers": (lambda: LayerScores((0,), (1.0,), names=("a", "b")), "1 layer has 1 score and 2 names"),
    "a layer without effects": (
        lambda: LayerScores((0, 3), (1.0, 2.0), effects=Effects(*EFFECTS, double(1, 1, 1), double(1, 1))),
        "scores and effects differ in layer 3",
    ),
    "effects without a layer": (
        lambda: LayerScores((0,), (1.0,), effects=Effects((Patch((0, 3)),), *EFFECTS[1:], double(1, 1, 1), double(1, 1))),
        "scores and effects differ in layer 3",
    ),
    "no layer": (lambda: LayerScores((), ()), "there are scores of no layer"),
    "no observation": (lambda: Moments(0, double(3), double(3)), "the number of observations=0 is not allowed"),
    "negative squares": (lambda: Moments(2, double(3), -double(3)), "a sum of squared deviations is negative"),
    "two shapes": (lambda: Moments(2, double(3), double(4)), r"mean and deviation have shapes \(3,\) and \(4,\)"),
    "effects of another size": (lambda: Effects(*EFFECTS, double(2, 1, 1), double(1, 1)), r"the effects have shape \(2, 1, 1\)"),
    "negative cost": (lambda: COST + Cost(nfe=-100), "nfe=-100 is not allowed"),
    "a correlation of 2": (lambda: Fidelity(2.0, 0.0, 1.0, 8), "the fidelity's correlation=2.0 is not allowed"),
    "an empty interval": (lambda: Fidelity(0.5, 0.9, 0.1, 8), "the fidelity's interval .* is empty"),
    "sureness of 2": (lambda: Confidence(2.0, (1,), 3, 6), "the confidence's probability=2.0 is not allowed"),
    "a recording of nothing": (lambda: Recording(SITES[:0], {"present": {}, "absent": {}}, {}, {}, "last"), "the recording has no site"),
    "a recording of half": (
        lambda: Recording(SITES, {"present": recording().moments["present"]}, {}, {}, "last"),
        "moments of absent and sites",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_in_the_houses_words(name, untyped):
    make, said = WRONG[name]
    with pytest.raises(InvalidInput, match=said):
        make()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9, unique=True))
def test_fills_stay_with_the_neurons_that_they_were_given_for(chosen):
    """Neuron n is given the fill n, in whatever order; with a fill of the whole site the order says nothing."""
    for fill in (torch.tensor(chosen).float(), torch.arange(10).float()):
        mask = NeuronMask(Neurons({"a": chosen}, {"a": 10}), fill={"a": fill})
        assert mask.neurons["a"] == tuple(sorted(chosen))
        assert mask.values["a"].tolist() == sorted(chosen)


@pytest.mark.parametrize("chosen", [[2, 0], [3, 1, 0], [3, 0, 3, 1]])
def test_fills_stay_with_their_neurons_through_changes_and_files(tmp_path, chosen):
    from dataclasses import replace

    order = list(dict.fromkeys(chosen))
    mask = NeuronMask(Neurons({"a": chosen}, {"a": 8}), fill={"a": torch.tensor(order).float()})
    for each in (mask, replace(mask, strength=0.5), load(save(mask, tmp_path / "x"), NeuronMask)):
        assert each.values["a"].tolist() == list(each.neurons["a"]) == sorted(order)
