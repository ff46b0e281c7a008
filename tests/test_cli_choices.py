"""The words that options take: shown in help, completed by the shell, and the same that the package takes."""

from typing import get_args

import pytest
from typer.testing import CliRunner

from neuroscope import demo, testbed
from neuroscope.attribution import Attribution, CausalAttribution
from neuroscope.cli import choices, methods
from neuroscope.cli.app import app
from neuroscope.core.conditions import Rows
from neuroscope.core.results.scores import Per
from neuroscope.core.sites import TEXT_ROLES, Role
from neuroscope.core.tokens import EditedToken, Token
from neuroscope.editing.lora import LoraDtype, LoraFormat
from neuroscope.generation.experiment import Localization
from neuroscope.metrics.shares import Space
from neuroscope.pipeline import placement
from neuroscope.report.plots._axes import CONTEXTS
from neuroscope.report.plots._neurons import VIEWS

TAKEN = {
    "DEVICES": (*placement.DEVICES, "cuda:N"),
    "DTYPES": placement.DTYPES,
    "OFFLOADS": placement.OFFLOADS,
    "ROLES": get_args(Role),
    "EDITED_ROLES": TEXT_ROLES,
    "TOKENS": get_args(Token),
    "EDITED_TOKENS": get_args(EditedToken),
    "ROWS": get_args(Rows),
    "PER": get_args(Per),
    "SHARES": get_args(Space),
    "FORMATS": get_args(LoraFormat),
    "FILE_DTYPES": get_args(LoraDtype),
    "EXECUTORS": ("local", "ray"),
    "VIEWS": (*VIEWS, "volcano"),
    "CONTEXTS": CONTEXTS,
    "STYLES": demo.DEMO_STYLES,
}
METHODS = {("Attribution",): [Attribution], ("CausalAttribution",): [CausalAttribution], ("Localization",): [Localization]}


def completed(line: str) -> list[str]:
    """What the shell offers for the last word of a line."""
    words = f"neuroscope {line}"
    environment = {"_NEUROSCOPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return CliRunner().invoke(app, [], prog_name="neuroscope", env=environment).output.split()


@pytest.mark.parametrize("name", [name for name, value in vars(choices).items() if name.isupper() and isinstance(value, tuple)])
def test_the_words_are_those_that_the_package_takes(name):
    assert sorted(getattr(choices, name)) == sorted(TAKEN[name])


@pytest.mark.parametrize("bases", METHODS)
def test_the_methods_are_those_of_the_package(bases):
    known = [name for base in METHODS[bases] for name in methods.subclasses(base, "neuroscope.attribution", "neuroscope.localization")]
    assert choices.methods(*bases) == tuple(sorted(known))


def test_the_metrics_and_models_are_those_of_the_package():
    assert choices.metrics() == tuple(methods.metrics())
    assert choices.models() == tuple(f"testbed:{name}" for name in testbed.pipelines())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rank --device cu", ["cuda", "cuda:N"]),
        ("rank --dtype ", ["auto", "float16", "bfloat16", "float32"]),
        ("generate --offload m", ["model"]),
        ("record --role key --role v", ["value"]),
        ("export --format ", ["diffusers", "kohya"]),
        ("mask --rows c", ["conditional"]),
        ("mask --method ", ["Auroc", "MeanDifference", "WeightedNorm", "Welch"]),
        ("localize --method L", ["LocoGen"]),
        ("atlas --method Lo", ["LocoGen"]),
        ("atlas --method NeuronA", ["NeuronAblation"]),
        ("atlas --method We", ["WeightedNorm", "Welch"]),
        ("rank --method Neuron", ["NeuronAblation", "NeuronGradient"]),
        ("evaluate --metric F", ["Flipped"]),
        ("sites --model t", ["testbed:pixart", "testbed:pixart-natural", "testbed:sd1", "testbed:sd1-natural"]),
        ("plot --view ", ["map", "sorted", "top", "volcano"]),
        ("rank --executor r", ["ray"]),
        ("demo --style st", ["stipple"]),
    ],
)
def test_the_shell_completes_them(line, expected):
    assert completed(line) == expected


@pytest.mark.parametrize("command", ["rank", "localize", "generate", "export"])
def test_the_help_shows_them(command):
    shown = CliRunner().invoke(app, [command, "--help"], terminal_width=200).output
    assert "auto|cuda|cuda:N|mps|cpu" in shown
    assert "none|model|sequential" in shown
