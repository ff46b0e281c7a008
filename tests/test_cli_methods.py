"""Methods and metrics as they are written in Python: what is read, what is refused, and that no text does anything else."""

import contextlib
from dataclasses import dataclass

import jaxtyping
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import neuroscope as ns
from neuroscope.attribution import Attribution
from neuroscope.cli.methods import LONGEST, build, metrics, neuron_methods, subclasses
from neuroscope.localization import Localization

KINDS = {
    "localization": subclasses(Localization),
    "attribution": neuron_methods(causal=False),
    "causal": neuron_methods(response=False),
    "metric": metrics(),
}
LAYERS = KINDS["localization"]


@pytest.fixture(scope="module", autouse=True)
def untyped_module():
    """As `untyped`, once for all examples."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_the_names_are_those_of_the_classes():
    assert list(KINDS["attribution"]) == ["Auroc", "MeanDifference", "WeightedNorm", "Welch"]
    assert list(KINDS["metric"]) == ["ClapScore", "ClipScore", "Flipped", "ImageShare", "LatentShare", "Reader"]
    assert list(KINDS["causal"]) == ["IntegratedGradients", "NeuronAblation", "NeuronGradient"]
    assert {"CausalTracing", "LocoGen"} <= LAYERS.keys()
    assert list(LAYERS) == sorted(set(LAYERS) & set(ns.__all__))


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("LocoGen", ns.LocoGen()),
        ("LocoGen()", ns.LocoGen()),
        (" LocoGen( window = 2, ) ", ns.LocoGen(window=2)),
        ("LocoGen(search='auto', budget=5e-2)", ns.LocoGen(search="auto", budget=0.05)),
        ("LocoGen(\n  steps=(0.0, 0.5), roles=['value'])  # a comment", ns.LocoGen(steps=(0.0, 0.5), roles=("value",))),
        ("CausalTracing(noise=2.5)", ns.CausalTracing(noise=2.5)),
        ("AttributionPatching(recomputed=True, samples=1)", ns.AttributionPatching(recomputed=True, samples=1)),
    ],
)
def test_what_python_reads_is_made(text, made):
    assert build("method", text, LAYERS) == made


def test_metrics_are_made():
    assert build("metric", "ClipScore(text='the style of Van Gogh')", KINDS["metric"]) == ns.ClipScore("the style of Van Gogh")
    assert build("metric", "Reader(attribute='style', value='stipple')", KINDS["metric"]) == ns.testbed.Reader("style", "stipple")
    assert build("metric", "LatentShare()", KINDS["metric"]) == ns.LatentShare()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "method '' is not written as in Python; give a name, alone or with keywords, such as AttentionContribution(against="),
        ("LocoGenn", "method 'LocoGenn' is unknown; choose one of AttentionContribution, "),
        ("LocoGenn()", "did you mean 'LocoGen'?"),
        ("LOCOGEN", "did you mean 'LocoGen'?"),
        ("attribution-patching", "did you mean 'AttributionPatching'?"),
        ("causal_tracing", "did you mean 'CausalTracing'?"),
        ("LocoGen(windw=2)", "'windw' is no option of LocoGen; it has window, enough, "),
        ("LocoGen(windw=2)", "did you mean 'window'?"),
        ("LocoGen(2)", "method LocoGen takes keywords only; write each value as in LocoGen(window=1)"),
        ("LocoGen(*(2,))", "takes keywords only"),
        ("LocoGen(**{'window': 2})", "takes keywords only"),
        ("LocoGen(window=1, window=2)", "'window' is given twice to LocoGen; give it once"),
        ("LocoGen(window=print(1))", "window of LocoGen is no plain value; give a number, a text in quotes, True, False, None, or a list"),
        ("LocoGen(window=window)", "window of LocoGen is no plain value"),
        ("LocoGen(window=1 .real)", "window of LocoGen is no plain value"),
        ("LocoGen(budget=1/20)", "budget of LocoGen is no plain value"),
        ("LocoGen(search=f'auto')", "search of LocoGen is no plain value"),
        ("LocoGen(roles={[]})", "roles of LocoGen is no plain value"),
        ("LocoGen(window=0)", "window=0 is no number of layers"),
        ("LocoGen(window=...)", "window=Ellipsis is no number of layers"),
        ("ns.LocoGen()", "is not written as in Python"),
        ("LocoGen()()", "is not written as in Python"),
        ("LocoGen() + LocoGen()", "is not written as in Python"),
        ("LocoGen(", "is not written as in Python"),
        ("__import__('os').abort()", "is not written as in Python"),
        ("lambda: 0", "is not written as in Python"),
        ("LocoGen()\0", "is not written as in Python"),
        ("LocoGen(roles='\udcff')", "is not written as in Python"),
        ("(" * 1_000, "is not written as in Python"),
        ("[" * 1_000 + "]" * 1_000, "is not written as in Python"),
        ("~" * 1_999 + "1", "is not written as in Python"),
        ("-" * 1_999 + "1", "is unknown; choose one of"),
        ("LocoGen(window=" + "-" * 1_900 + "1)", "LocoGen"),
        ("LocoGen(window=" + "1+" * 900 + "1)", "LocoGen"),
        ("LocoGen(window=-0x" + "f" * 1_900 + ")", "is no number of layers"),
        ("LocoGen(parts=0x" + "f" * 1_900 + ")", "parts="),
        ("x" * (LONGEST + 1), "is 2,001 characters long; give at most 2,000"),
        ("9" * 10**6, "is 1,000,000 characters long"),
    ],
)
def test_anything_else_is_refused(text, words):
    with pytest.raises(ns.InvalidInput) as refused:
        build("method", text, LAYERS)
    assert words in str(refused.value)


def test_what_a_class_needs_is_named():
    with pytest.raises(ns.InvalidInput, match=r"metric Reader needs attribute; write Reader\(attribute=…\)"):
        build("metric", "Reader", KINDS["metric"])
    with pytest.raises(ns.InvalidInput, match=r"'p' is no option of Welch; it has none"):
        build("method", "Welch(p=1)", KINDS["attribution"])


def test_what_a_class_does_not_check_is_refused_too():
    @dataclass(frozen=True)
    class Careless:
        count: int = 1

        def __post_init__(self):
            self.count + 1

    with pytest.raises(ns.InvalidInput, match="has a value of another kind than Careless takes"):
        build("method", "Careless(count='x')", {"Careless": Careless})


def test_a_new_class_is_found_without_a_line_here():
    made = type("Newest", (Attribution,), {"__module__": "neuroscope.attribution.newest", "__call__": lambda self, evidence: None})
    try:
        assert "Newest" in subclasses(Attribution)
    finally:
        made.__module__ = "elsewhere"
    assert "Newest" not in subclasses(Attribution)


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
SYNTAX = ["(", ")", "[", "{", ",", "=", "*", "**", ".", "'", "-", "1", "window", "lambda", "\\", "\n", "\0", " "]
PIECES = st.lists(st.sampled_from([*LAYERS, *KINDS["metric"], *SYNTAX]), max_size=12).map("".join)


def _refused_or_made(kinds, text):
    with contextlib.suppress(ns.InvalidInput):
        assert type(build("method", text, kinds)) in kinds.values()


@given(text=st.text() | PIECES, kinds=st.sampled_from(sorted(KINDS)))
@settings(max_examples=300, deadline=None)
def test_no_text_raises_anything_else(text, kinds):
    _refused_or_made(KINDS[kinds], text)


@given(data=st.data(), kinds=st.sampled_from(sorted(KINDS)))
@settings(max_examples=300, deadline=None)
def test_no_value_raises_anything_else(data, kinds):
    """Every option of every class with values of every kind."""
    name = data.draw(st.sampled_from(list(KINDS[kinds])))
    options = list(getattr(KINDS[kinds][name], "__dataclass_fields__", {})) or ["none"]
    chosen = data.draw(st.lists(st.sampled_from(options), unique=True, max_size=3))
    _refused_or_made(KINDS[kinds], f"{name}({', '.join(f'{each}={data.draw(LITERALS)!r}' for each in chosen)})")
