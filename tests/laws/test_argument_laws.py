"""Laws on what users give: every verb refuses every wrong kind of every argument in the house's words, before anything runs."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import neuroscope as ns
from neuroscope.attribution import CausalAttribution
from neuroscope.evaluation._response import Dose
from neuroscope.generation.arguments import check_generation
from neuroscope.generation.batches import Sweep
from neuroscope.localization import Localization
from tests.families import tiny
from tests.laws.members import members

WRONG_NUMBERS = (math.nan, math.inf, -math.inf, "1", True, None, [1], 1j)
OPTIONED = [*members(Localization), *members(CausalAttribution), ns.LocoEdit, ns.Flipped]
NUMBERS, FLAGS = [
    [
        (kind, each.name)
        for kind in OPTIONED
        for each in fields(kind)
        if isinstance(each.default, int | float) and isinstance(each.default, bool) == wanted
    ]
    for wanted in (False, True)
]
STEPPED = [kind for kind in OPTIONED if isinstance(getattr(kind, "steps", None), tuple)]


@pytest.mark.parametrize(("kind", "option"), NUMBERS, ids=lambda each: getattr(each, "__name__", each))
def test_every_numeric_option_refuses_what_is_no_finite_number(kind, option, untyped):
    for value in WRONG_NUMBERS:
        with pytest.raises(ns.InvalidInput, match=f"{option}=.*give"):
            kind(**{option: value})


@pytest.mark.parametrize(("kind", "option"), FLAGS, ids=lambda each: getattr(each, "__name__", each))
def test_every_truth_value_refuses_other_kinds(kind, option, untyped):
    for value in (1, 0.0, "yes", None):
        with pytest.raises(ns.InvalidInput, match=f"{option}=.* is neither True nor False"):
            kind(**{option: value})


@pytest.mark.parametrize("kind", STEPPED)
@pytest.mark.parametrize("steps", [(math.nan, 1.0), (0.0, math.inf), ("0", "1"), "ab", 5, None, (0.5,), (True, False)])
def test_every_part_of_a_schedule_is_two_finite_fractions(kind, steps, untyped):
    with pytest.raises(ns.InvalidInput, match="step"):
        kind(steps=steps)


@pytest.mark.parametrize("kind", [kind for kind in OPTIONED if hasattr(kind, "roles")])
@pytest.mark.parametrize("roles", [3, None, (3,), "kye", ns.LocoGen])
def test_every_choice_of_roles_refuses_other_kinds(kind, roles, untyped):
    with pytest.raises(ns.InvalidInput, match="role"):
        kind(roles=roles)


def test_whole_numbers_of_numpy_are_kept_as_plain_ones():
    assert repr(ns.LocoGen(parts=np.int64(3))) == "LocoGen(parts=3)"
    assert repr(ns.CausalTracing(noise=np.float32(2))) == "CausalTracing(noise=2.0)"
    assert repr(ns.CausalTracing(noise=2)) == "CausalTracing(noise=2)"


def test_one_string_is_no_list_of_prompts_or_tokens(untyped):
    with pytest.raises(ns.InvalidInput, match=r"preserve are a list of strings, not the one string 'the sea'; write \['the sea'\]"):
        ns.LocoEdit(preserve="the sea")
    for text in ("", "  ", 3, b"x"):
        with pytest.raises(ns.InvalidInput, match="text is"):
            ns.ClipScore(text)
    assert ns.LocoEdit(tokens="eos").tokens == "eos"


@dataclass(frozen=True)
class Verb:
    """A public function with arguments that are right, and for each of them what is wrong."""

    call: Callable
    right: dict[str, Any]
    wrong: dict[str, tuple] = field(default_factory=dict)
    options: bool = False


NUMBER = (math.nan, "1", 1.5, True, [1])
FLAG = ("yes", 1, None)
GRAPH = (None, "sd1", ns.HookGraph, 3)
CONCEPT = (None, "stipple", ns.Concept, 3, [])
PROMPTS = (None, "a red star", 3, [1], [None], str, ["\ud800"])
SEEDS = (None, 1, "1", 1.5, [1.5], ["1"], [True], [2**64], [], range)
PATH = (3, "", "a\0b", [], object())
AXES = (3, "ax", [])
TEXT = (None, 3, "", "  ", ["a"])
OTHERS = (3, [3], [], ["a", "a"], "x", "fine X", "", [""])


@pytest.fixture(scope="module")
def verbs(graph, concept, recording, tmp_path_factory) -> dict[str, Verb]:
    """Every public verb by name."""
    folder = tmp_path_factory.mktemp("verbs")
    scores = ns.score(recording, ns.Welch())
    mask = ns.NeuronMask(scores.top(3), rows="all")
    metric = ns.testbed.Reader("object", "star")
    image = Image.new("RGB", (8, 8))
    table = pd.DataFrame({"intervention": ["none"], "prompt": ["a"], "seed": [0], "metric": ["m"], "score": [1.0], "neurons": [1]})
    sweep = {"batch_size": NUMBER, "quiet": FLAG}
    ledger = sweep | {"output": PATH, "executor": (None, "ray", ns.Local, 3)}
    ax = plt.subplots()[1]
    layers = scores.by_layer()
    other = {"other": (None, "scores", 3, layers)}
    run = {"graph": graph, "seeds": [0]}
    doses = (Dose(0, "no change"), Dose(1, "all neurons"))
    response = ns.DoseResponse(doses, ("m",), tuple("abcdef"), (0,), torch.tensor([[1.0], [0.0]]).expand(1, 2, 6).reshape(1, 2, 6, 1))
    made = {
        "evaluate": Verb(
            ns.evaluate,
            run | {"interventions": {"mask": mask}, "prompts": ["a red star"], "metrics": metric, "num_inference_steps": 1},
            ledger
            | {
                "graph": GRAPH,
                "interventions": (
                    None,
                    "mask",
                    ns.NeuronMask,
                    [mask],
                    scores,
                    mask.neurons,
                    {"m": 3},
                    {"m": "mask"},
                    {3: mask},
                    {"": mask},
                ),
                "prompts": PROMPTS,
                "seeds": (*SEEDS, [0, 0]),
                "metrics": (None, "clip", ns.ClipScore, ns.LatentShare(), [metric, "clip"], 3, len, []),
                "controls": FLAG,
            },
            options=True,
        ),
        "dose_response": Verb(
            ns.dose_response,
            run | {"scores": scores, "prompts": ["a red star"], "metrics": metric, "budgets": [1], "num_inference_steps": 1},
            ledger
            | {
                "graph": GRAPH,
                "scores": (None, "scores", ns.NeuronScores, layers, mask, recording),
                "prompts": PROMPTS,
                "seeds": (*SEEDS, [0, 0]),
                "metrics": (None, "clip", ns.ClipScore, ns.LatentShare(), [metric, "clip"], 3, len, []),
                "fill": (None, "absent", math.nan, {}, {"a": 3}),
                "budgets": ("1", 1, [0.5], [True], [-1], [2, 1], [1, 1], [10**9], ["1"], {1: 2}),
                "unrelated": (*PROMPTS, ["a", "a"]),
            },
            options=True,
        ),
        "generate": Verb(
            ns.generate,
            run | {"change": mask, "prompts": ["a red star"], "num_inference_steps": 1},
            {
                "graph": GRAPH,
                "change": ("mask", ns.NeuronMask, scores, mask.neurons, [mask, 3], {"m": mask}, 3),
                "prompts": PROMPTS,
                "seeds": SEEDS,
                "batch_size": NUMBER,
                "quiet": FLAG,
            },
            options=True,
        ),
        "localize": Verb(
            ns.localize,
            run | {"concept": concept, "method": ns.LocoGen(), "metric": ns.LatentShare(), "num_inference_steps": 1},
            ledger
            | {
                "graph": GRAPH,
                "concept": CONCEPT,
                "method": (None, "LocoGen", ns.LocoGen, ns.Welch(), [ns.LocoGen()]),
                "metric": (None, "stipple", ns.LatentShare, [ns.LatentShare()], len),
                "seeds": (*SEEDS, [0, 0]),
                "pairs": (*NUMBER, 0, -1),
                "keep_images": (*NUMBER, -1),
            },
            options=True,
        ),
        "rank": Verb(
            ns.rank,
            run | {"concept": concept, "num_inference_steps": 1},
            ledger
            | {
                "graph": GRAPH,
                "concept": CONCEPT,
                "method": (None, "Welch", ns.NeuronGradient, ns.LocoGen(), [ns.Welch()]),
                "layers": ("8", [], layers, scores, 1.5, True, [True], ["8"], [99], ns.LayerScores),
                "metric": ("stipple", ns.LatentShare, [ns.LatentShare()], len),
                "seeds": (*(each for each in SEEDS if each is not None), [0, 0]),
                "pairs": (*NUMBER, 0, -1),
            },
            options=True,
        ),
        "atlas": Verb(
            ns.atlas,
            run | {"concepts": [concept], "num_inference_steps": 1},
            ledger
            | {
                "graph": GRAPH,
                "concepts": (None, "stipple", ns.Concept, [], [concept, concept], [concept, "stipple"], 3),
                "method": (None, "Welch", ns.NeuronGradient, [ns.Welch()]),
                "layers": ("8", [], layers, scores, 1.5, True, [True], ["8"], [99], ns.LayerScores),
                "metric": ("stipple", ns.LatentShare, [ns.LatentShare()], len),
                "seeds": (*(each for each in SEEDS if each is not None), [0, 0]),
                "pairs": (*NUMBER, 0, -1),
            },
            options=True,
        ),
        "record": Verb(
            ns.record,
            {"graph": graph, "concept": concept, "sites": graph.sites.where(layer=8, role="query"), "num_inference_steps": 1},
            {
                "graph": GRAPH,
                "concept": CONCEPT,
                "sites": ("up.*", ["unet.x"], 3, ns.Site, [3], []),
                "token": ("lst", None, 3, ["last"]),
                "by_step": FLAG,
                "keep_samples": FLAG,
                "batch_size": (*NUMBER, 0, None),
                "seed": (*NUMBER, 2**64, 2**64 - 1, None),
                "quiet": FLAG,
            },
            options=True,
        ),
        "score": Verb(
            ns.score,
            {"recording": recording, "method": ns.Welch()},
            {"recording": (None, "r.safetensors", ns.Recording, scores), "method": (None, "welch", ns.Welch, ns.LocoGen())},
        ),
        "null_test": Verb(
            ns.null_test,
            {"recording": recording, "method": ns.Welch(), "top": 3, "heads": graph.heads(recording.sites)},
            {
                "recording": (None, "r", scores),
                "method": (None, "welch", ns.Welch),
                "null": ("rotate", None, 3),
                "top": (*NUMBER, 0, None),
                "heads": (3, "heads", [4], dict.fromkeys(recording.sites.paths, 1.5)),
                "draws": (*NUMBER, 0, None),
                "seed": (*NUMBER, 2**64, None),
                "quiet": FLAG,
            },
        ),
        "edit": Verb(
            ns.edit,
            {"graph": graph, "concept": concept, "method": ns.LocoEdit(), "layers": [8]},
            {
                "graph": GRAPH,
                "concept": (*CONCEPT, [concept, 3]),
                "method": (None, "LocoEdit", ns.LocoEdit, ns.LocoGen()),
                "layers": ("8", [], None, layers, scores, 1.5, True, ["8"], [99], ns.LayerScores),
                "seeds": (*(each for each in SEEDS if each is not None), [0, 0]),
                "quiet": FLAG,
            },
        ),
        "fold": Verb(
            lambda graph, change: ns.fold(graph, change),
            {"graph": graph, "change": mask},
            {"graph": GRAPH, "change": (None, "mask", [mask], ns.NeuronMask, mask.neurons)},
        ),
        "export_lora": Verb(
            ns.export_lora,
            {"graph": graph, "changes": mask, "path": folder / "lora"},
            {
                "graph": GRAPH,
                "changes": (None, "mask", [], [3], ns.NeuronMask, mask.neurons),
                "path": (*PATH, None),
                "format": (None, "koya", 3),
                "dtype": (None, "float8", torch.float16),
            },
        ),
        "summarize": Verb(
            ns.summarize,
            {"table": table},
            {
                "table": (None, "t.csv", table.drop(columns="metric"), [1]),
                "confidence": (*NUMBER, 0, 1, -1, 95, None),
                "seed": (*NUMBER, -1, None),
            },
        ),
        "random_control": Verb(
            ns.random_control,
            {"mask": mask},
            {"mask": (None, "mask", mask.neurons, ns.NeuronMask), "seed": (*NUMBER, -1, None)},
        ),
        "merge": Verb(
            ns.merge,
            {"ledgers": [folder / "1"], "output": folder / "merged"},
            {"ledgers": (None, 3, [], [3], [None], [""], str(folder / "none")), "output": (*PATH, None), "mixed": FLAG},
        ),
        "report": Verb(ns.report, {"run": folder}, {"run": (*PATH, None), "path": PATH}),
        "save": Verb(
            lambda artifact, path: ns.save(artifact, path),
            {"artifact": mask, "path": folder / "m.safetensors"},
            {"artifact": ([mask], None, "mask", ns.NeuronMask)},
        ),
        "sites_from_config": Verb(ns.sites_from_config, {"config": {}}, {"config": (None, 3, "", "none.json", {"_class_name": 3})}),
        "plots.neurons": Verb(
            ns.plots.neurons,
            {"scores": scores},
            {
                "scores": (None, layers, recording, "s", ns.NeuronScores),
                "marked": (3, "m", [1], layers),
                "view": ("bars", 3),
                "top": (*NUMBER, 0),
                "ax": AXES,
            },
        ),
        "plots.layers": Verb(
            ns.plots.layers,
            {"scores": layers},
            {"scores": (None, scores, "s", [layers], {"a": scores}, {}), "marked": (*NUMBER, -1), "view": ("bars", 3), "ax": AXES},
        ),
        "plots.grid": Verb(ns.plots.grid, {"scores": layers}, {"scores": (None, scores, "s", layers), "ax": AXES}),
        "plots.images": Verb(
            ns.plots.images,
            {"rows": {"a": [image]}},
            {
                "rows": (None, [image], image, "a", {}, {"a": 3}, {"a": "b"}, {"a": [3]}, {3: [image]}),
                "columns": ("ab", 3, [3], None),
                "ax": AXES,
            },
        ),
        "plots.dose": Verb(ns.plots.dose, {"table": table}, {"table": (None, "t.csv", [1], pd.DataFrame()), "ax": AXES}),
        "plots.graph": Verb(ns.plots.graph, {"graph": graph}, {"graph": GRAPH, "layer": (*NUMBER[:4], -1, 999), "ax": AXES}),
        "plots.strengths": Verb(ns.plots.strengths, {"table": table}, {"table": (None, "t.csv", [1], pd.DataFrame()), "ax": AXES}),
        "plots.write": Verb(
            ns.plots.write,
            {"ax": ax, "path": folder / "p.png"},
            {"ax": (None, "p", plt.figure()), "path": (*PATH, None, "p.xyz"), "context": (*TEXT, "loud")},
        ),
        "Concept": Verb(
            ns.Concept,
            {"name": "x", "present": ["a x"], "absent": ["a"]},
            {
                "name": TEXT,
                "present": (*PROMPTS, [], [""], ["a"], ["a x", "b x"], {"a x"}, {"a x": 1}),
                "absent": (*PROMPTS, [], [" "], ["a x"], {"a"}),
                "test": (None, "abc", 3, [1], [""], ["a"], {"b"}),
                "against": (None, "abc", 3, [1]),
            },
        ),
        "Concept.style": Verb(
            ns.Concept.style, {"name": "x"}, {"name": TEXT, "prompts": (None, 3, "genral", ["general"]), "against": OTHERS}
        ),
        "Concept.object": Verb(ns.Concept.object, {"name": "x"}, {"name": TEXT, "prompts": (None, 3, "genral")}),
        "Concept.fact": Verb(
            ns.Concept.fact, {"subject": "x"}, {"subject": TEXT, "answer": (3, ["a"], "  ", "x"), "prompts": (None, 3, "genral")}
        ),
        "Concept.attribute": Verb(
            ns.Concept.attribute,
            {"name": "x"},
            {"name": TEXT, "kind": (None, 3, "stlye"), "prompts": (None, 3, "genral"), "against": OTHERS},
        ),
        "Concept.from_file": Verb(ns.Concept.from_file, {"path": "x.toml"}, {"path": (*PATH, None, "none.toml")}),
        "sites.where": Verb(
            graph.sites.where,
            {},
            {
                "layer": ("8", 8.0, True, ["8"], [8, None], 99, -1, layers),
                "role": ("vlaue", 3, ["value", 3], ns.Site),
                "block": (3, "", ["up"]),
                "text_only": ("yes", 1),
                "path": (3, "", ["unet"]),
            },
        ),
        "sites.at": Verb(graph.sites.at, {"paths": []}, {"paths": (None, 3, [3], "unet.none", ["unet.none"])}),
        "sites.expect": Verb(graph.sites.expect, {"count": 0}, {"count": (*NUMBER, -1, None)}),
        "scores.top": Verb(scores.top, {"count": 3}, {"count": (*NUMBER, "3", 2.5, 0, -3, None), "per": (None, 3, "layr")}),
        "response.smallest": Verb(
            response.smallest,
            {"share": 0.5},
            {"share": (*NUMBER, 0, 1, None), "confidence": (*(each for each in NUMBER if each != 1.5), 0, 1, 95, None)},
        ),
        "scores.agreement": Verb(scores.agreement, {"other": scores}, other),
        "layers.top": Verb(layers.top, {"count": 1}, {"count": (*NUMBER, "3", 2.5, 0, -3, None)}),
        "layers.agreement": Verb(layers.agreement, {"other": layers}, {"other": (None, "scores", 3, scores)}),
        "layers.name": Verb(layers.name, {"layer": 8}, {"layer": ("8", 99, None, [8])}),
        "recording.mean": Verb(recording.mean, {"arm": "absent"}, {"arm": ("abs", None, 3, ["absent"])}),
        "recording.count": Verb(recording.count, {"arm": "absent"}, {"arm": ("abs", None, 3)}),
        "testbed.path": Verb(ns.testbed.path, {"name": "sd1"}, {"name": ("sd2", None, 3, ["sd1"])}),
        "testbed.verify": Verb(ns.testbed.verify, {"pipe": graph.pipe}, {"pipe": (None, "sd1", graph.pipe)}),
        "testbed.planted": Verb(ns.testbed.planted, {"pipe": graph.pipe}, {"pipe": (None, "sd1", graph.pipe)}),
        "Reader": Verb(ns.testbed.Reader, {"attribute": "style"}, {"attribute": (None, 3, "stlye"), "value": (3, "red", ["plain"])}),
    }
    plt.close("all")
    return made


NAMES = [
    "atlas",
    "evaluate",
    "dose_response",
    "generate",
    "localize",
    "rank",
    "record",
    "score",
    "null_test",
    "edit",
    "fold",
    "export_lora",
    "merge",
    "summarize",
    "random_control",
    "report",
    "save",
    "sites_from_config",
    "plots.neurons",
    "plots.layers",
    "plots.grid",
    "plots.images",
    "plots.dose",
    "plots.graph",
    "plots.strengths",
    "plots.write",
    "Concept",
    "Concept.style",
    "Concept.object",
    "Concept.fact",
    "Concept.attribute",
    "Concept.from_file",
    "sites.where",
    "sites.at",
    "sites.expect",
    "scores.top",
    "response.smallest",
    "scores.agreement",
    "layers.top",
    "layers.agreement",
    "layers.name",
    "recording.mean",
    "recording.count",
    "testbed.path",
    "testbed.verify",
    "testbed.planted",
    "Reader",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_kind_of_every_argument_is_refused_before_anything_runs(name, verbs, graph, untyped):
    verb = verbs[name]
    with tiny.counted(graph.denoiser) as calls:
        for argument, values in verb.wrong.items():
            for value in values:
                with pytest.raises(ns.NeuroscopeError) as caught:
                    verb.call(**verb.right | {argument: value})
                text = str(caught.value)
                assert "\n" not in text, text
                assert len(text) < 400, text
                assert not plt.get_fignums(), (name, argument, value)
    assert calls == []


@pytest.mark.parametrize("name", NAMES)
def test_no_argument_of_a_verb_is_forgotten(name, verbs):
    verb = verbs[name]
    named = [each.name for each in inspect.signature(verb.call).parameters.values() if each.kind is not each.VAR_KEYWORD]
    allowed = {"path"} if name == "save" else set()
    assert set(named) - allowed == set(verb.wrong)


def test_every_verb_is_in_the_table():
    public = {name for name in ns.__all__ if inspect.isfunction(getattr(ns, name))} - {"load", "read_header"}
    plots = {f"plots.{name}" for name, each in vars(ns.plots).items() if inspect.isfunction(each) and each.__module__ == ns.plots.__name__}
    assert public | {name for name in plots if not name.startswith("plots._")} <= set(NAMES)


@pytest.mark.parametrize("name", ["evaluate", "generate", "localize", "rank", "record"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 2}, r"takes no num_steps, so it would be ignored; did you mean 'num_inference_steps'\?"),
        ({"steps": 2}, r"did you mean 'num_inference_steps'\?"),
        ({"guidance": 3.0}, r"did you mean 'guidance_scale'\?"),
        ({"cfg_scale": 3.0}, r"did you mean 'guidance_scale'\?"),
        ({"xyzzy": 3}, "takes no xyzzy, so it would be ignored; leave it out"),
        ({"callback_steps": 1}, "takes no callback_steps, so it would be ignored"),
        ({"self": 1}, "takes no self"),
        ({"batchsize": 3}, r"did you mean 'batch_size'\?"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is not allowed; give 1 to 999"),
        ({"num_inference_steps": -3}, "num_inference_steps=-3 is not allowed; give 1 to 999"),
        ({"num_inference_steps": 10**7}, "num_inference_steps=10000000 is not allowed; give 1 to 999"),
        ({"num_inference_steps": 2.0}, "num_inference_steps=2.0 is no whole number"),
        ({"num_inference_steps": "2"}, "num_inference_steps='2' is no number"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan is not finite"),
        ({"guidance_scale": math.inf}, "guidance_scale=inf is not finite"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 is not allowed; give at least 0"),
        ({"guidance_scale": "7"}, "guidance_scale='7' is no number"),
        ({"guidance_scale": None}, "guidance_scale=None is no number"),
        ({"eta": math.nan}, "eta=nan is not finite"),
        ({"guidance_rescale": math.inf}, "guidance_rescale=inf is not finite"),
        ({"height": 64}, "height=64 is given without width, and pipelines then take their own size for both; give both"),
        ({"width": 64}, "width=64 is given without height"),
        ({"height": 0, "width": 64}, "height=0 is not allowed; give 8 to 4096"),
        ({"height": -8, "width": 64}, "height=-8 is not allowed; give 8 to 4096"),
        ({"height": 60, "width": 64}, "height=60 is no multiple of 8 pixels, as this pipeline needs; give one, such as 64"),
        ({"height": 64.0, "width": 64}, "height=64.0 is no whole number"),
        ({"height": 64, "width": 9_999_992}, "width=9999992 is not allowed; give 8 to 4096"),
    ],
)
def test_keywords_of_the_pipeline_are_checked_before_anything_runs(name, options, words, verbs, graph, untyped):
    if name == "evaluate" or "batchsize" not in options:
        with tiny.counted(graph.denoiser) as calls, pytest.raises(ns.InvalidInput, match=words):
            verbs[name].call(**verbs[name].right | options)
        assert calls == []


def test_what_a_pipelines_class_hands_on_is_its_own_too(graph):
    class Named(type(graph.pipe)):
        def __call__(self, *args: Any, brightness: float = 1.0, **options: Any) -> Any:
            return super().__call__(*args, **options)

    pipe = Named(**graph.pipe.components, requires_safety_checker=False)
    check_generation(pipe, {"brightness": 2.0, "guidance_scale": 2.0})
    with pytest.raises(ns.InvalidInput, match=r"Named takes no britness, so it would be ignored; did you mean 'brightness'\?"):
        check_generation(pipe, {"britness": 2.0})


@pytest.mark.parametrize("option", ["prompt", "generator", "prompt_embeds", "num_images_per_prompt", "latents"])
def test_record_sets_some_options_itself(option, verbs, untyped):
    with pytest.raises(ns.InvalidInput, match=f"{option} is set for each image here; give only options that all images share"):
        ns.record(**verbs["record"].right | {option: None})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("localize", {"seeds": 1}, r"seeds=1: write \[1\] for this one seed, or range\(1\) for so many"),
        ("evaluate", {"prompts": "a red"}, r"prompts are a list of strings, not the one string 'a red'; write \['a red'\]"),
        ("evaluate", {"metrics": "clip"}, r"metrics is the string 'clip', not an object; write ns.ClipScore"),
        ("evaluate", {"metrics": ns.ClipScore}, r"metrics is the class ClipScore, not an object of it; write ClipScore\(...\)"),
        ("localize", {"method": ns.LocoGen}, r"method is the class LocoGen, not an object of it; write LocoGen\(...\), with parentheses"),
        ("localize", {"metric": "stipple"}, r"metric is the string 'stipple', not an object; write ns.LatentShare\(\)"),
        ("score", {"method": "welch"}, r"method is the string 'welch', not an object; write ns.Welch\(\)"),
        ("score", {"method": ns.Welch}, r"method is the class Welch, not an object of it; write Welch\(...\), with parentheses"),
        ("Concept.style", {"name": ["a", "b"]}, r"the style's name is \['a', 'b'\], which is no text; give a string"),
        ("sites.where", {"layer": "8"}, "layer='8' is no number of a layer, nor a list of them; write 8"),
        (
            "save",
            {"artifact": []},
            "what is saved is a list, which does not fit; give one such as neuroscope.NeuronMask",
        ),
    ],
)
def test_refusals_say_what_to_write(name, change, words, verbs, untyped):
    with pytest.raises(ns.InvalidInput, match=words):
        verbs[name].call(**verbs[name].right | change)


def test_layer_scores_for_layers_say_how_to_take_the_best(verbs, recording, untyped):
    scores = ns.score(recording, ns.Welch())
    with pytest.raises(
        ns.InvalidInput, match=r"layers is a LayerScores, not numbers of layers; write the best layers of it, scores.top\(1\)"
    ):
        ns.edit(**verbs["edit"].right | {"layers": scores.by_layer()})
    with pytest.raises(ns.InvalidInput, match=r"layers is a NeuronScores, .*scores.by_layer\(\).top\(1\)"):
        ns.edit(**verbs["edit"].right | {"layers": scores})


class TestOneForAList:
    @pytest.fixture
    def drawn(self, monkeypatch) -> None:
        """Images that cost nothing; what is asked for is what counts."""
        monkeypatch.setattr(Sweep, "_make", lambda self, rows, enter: [Image.new("RGB", (64, 64)) for _ in rows])

    def test_one_intervention_is_called_by_its_kind_and_one_metric_is_a_list_of_one(self, graph, verbs, drawn):
        right = verbs["evaluate"].right
        mask, metric = right["interventions"]["mask"], right["metrics"]
        table = ns.evaluate(**right | {"interventions": mask, "quiet": True})
        assert list(table["intervention"]) == ["none", "neuron-mask", "neuron-mask: random"]
        assert set(table["metric"]) == {metric.name}

    def test_a_name_that_a_random_control_takes_is_refused(self, verbs, drawn):
        right = verbs["evaluate"].right
        mask = right["interventions"]["mask"]
        named = {"a": mask, "a: random": mask}
        with pytest.raises(ns.InvalidInput, match="the name 'a: random' is that of the random control of 'a'; give"):
            ns.evaluate(**right | {"interventions": named})
        assert set(ns.evaluate(**right | {"interventions": named, "controls": False, "quiet": True})["intervention"]) == set(named)

    def test_one_site_and_a_mask_for_its_neurons_are_taken(self, graph, concept, verbs, recording):
        site = graph.sites.where(layer=8, role="key")[0]
        assert ns.record(graph, concept, site, quiet=True).sites.paths == (site.path,)
        scores = ns.score(recording, ns.Welch())
        top = scores.top(3)
        marks = [ns.plots.neurons(scores, marked=each).collections[-1].get_offsets() for each in (top, ns.NeuronMask(top))]
        assert torch.equal(*(torch.tensor(np.asarray(each)) for each in marks))
        plt.close("all")
