"""Tables and help as the command line prints them: at 80 columns, in a pipe, and with wide names."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from rich.cells import cell_len
from typer.testing import CliRunner

import neuroscope as ns
from neuroscope.cli.app import app
from neuroscope.core.sharing.terminal import table
from neuroscope.report import plots
from tests.fuzz.examples import examples

COMMANDS = typer.main.get_command(app).commands
LONG = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FRAME = pd.DataFrame(
    {
        "layer": [1, 12],
        "role": ["key", "value"],
        "score": [0.12345, -12.5],
        "p_value": [1e-20, 0.5],
        "q_value": [np.nan, np.nan],
        "concept": ["梵高 [bold]", "van\nGogh"],
        "site": [LONG, LONG.replace("to_k", "to_v")],
    }
)
ESCAPE = "\x1b"


def words(text):
    return re.sub(r"[\s.…]+", "", text)


class TestTables:
    def test_a_pipe_has_one_line_a_row_and_whole_values(self):
        head, *rows = table(FRAME).splitlines()
        assert head.split() == ["layer", "role", "score", "p_value", "concept", "site"]  # q-values are missing alone
        assert rows[0].split() == ["1", "key", "0.123", "1e-20", "梵高", "[bold]", LONG]
        assert rows[1].split() == ["12", "value", "-12.500", "0.5", "van", "Gogh", LONG.replace("to_k", "to_v")]
        assert ESCAPE not in table(FRAME)
        assert len({cell_len(line[: line.index(end)]) for line, end in zip(rows, ("unet", "unet"), strict=True)}) == 1

    @pytest.mark.parametrize("width", [80, 100, 160])
    def test_a_terminal_has_no_line_that_is_too_long_and_no_value_that_is_cut(self, width):
        drawn = table(FRAME, width)
        assert max(map(cell_len, drawn.splitlines())) <= width
        for value in ("0.123", "-12.500", "1e-20", "value"):
            assert value in drawn
        assert "…" not in drawn

    @pytest.mark.parametrize("width", [60, 80, 100, 160])
    def test_long_texts_are_folded_and_whole(self, width):
        head, *lines = table(FRAME.drop(columns="concept"), width).splitlines()
        assert "".join(line[head.index("site") :].strip() for line in lines) == LONG + LONG.replace("to_k", "to_v")

    def test_numbers_are_whole_where_nothing_else_fits(self):
        drawn = table(FRAME, 20)
        assert all(value in drawn for value in ("12", "-12.500", "1e-20"))

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0.5, 0.25], ["0.500", "0.250"]),
            ([0.5, 0.0], ["0.500", "0.000"]),
            ([0.0021, 0.00175], ["0.0021", "0.00175"]),
            ([0.5, 0.0001], ["0.5", "0.0001"]),
            ([2.5e7, 1.0], ["2.5e+07", "1"]),
            ([1.0, np.nan], ["1.000", "nan"]),
        ],
    )
    def test_numbers_keep_three_digits(self, values, expected):
        assert [line.strip() for line in table(pd.DataFrame({"x": values})).splitlines()[1:]] == expected

    def test_missing_whole_numbers_are_empty(self):
        frame = pd.DataFrame({"layer": pd.array([1, None], dtype="Int64"), "name": ["a", "b"]})
        assert [line.split() for line in table(frame).splitlines()] == [["layer", "name"], ["1", "a"], ["b"]]

    def test_a_table_without_rows_has_its_head(self):
        assert table(FRAME.head(0)).split() == list(FRAME.columns)

    def test_a_terminal_is_told_from_a_pipe(self, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "70")
        drawn = table(FRAME)
        assert ESCAPE in drawn
        assert max(cell_len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in drawn.splitlines()) <= 70


def test_every_table_of_the_command_line_is_drawn_by_rich():
    package = Path(ns.__file__).parent
    assert [str(path) for path in package.rglob("*.py") if ".to_string(" in path.read_text()] == []


@pytest.mark.parametrize("command", COMMANDS)
class TestHelp:
    def shown(self, command):
        return CliRunner().invoke(app, [command, "--help"], terminal_width=80).output

    def test_it_fits_80_columns(self, command):
        assert max(map(cell_len, self.shown(command).splitlines())) <= 80

    def test_it_says_every_word(self, command):
        shown, found = words(self.shown(command)), COMMANDS[command]
        assert words(found.help) in shown
        said = [param.help for param in found.params if getattr(param, "help", None)]
        assert [each for each in said if words(each) not in shown] == []

    def test_every_argument_has_help(self, command):
        assert [param.name for param in COMMANDS[command].params if not getattr(param, "help", None) and param.name != "help"] == []

    def test_the_list_of_commands_has_its_whole_first_sentence(self, command):
        shown = CliRunner().invoke(app, ["--help"], terminal_width=80).output
        assert max(map(cell_len, shown.splitlines())) <= 80
        assert words(re.split(r"\.(?:\s|$)", COMMANDS[command].help)[0]) in words(shown)
        assert "..." not in shown.replace("[ARGS]...", "")


def test_options_of_a_run_stand_apart_from_those_of_printing():
    shown = CliRunner().invoke(app, ["rank", "--help"], terminal_width=80).output
    printing, running = shown.split("Printing:")[1].split("Running:")
    assert ("--quiet" in printing, "--json" in printing, "--batch-size" in printing) == (True, True, False)
    assert all(flag in running for flag in ("--dry-run", "--rate", "--batch-size", "--executor", "--workers"))


@pytest.mark.parametrize("number", range(len(examples())))
def test_show_cuts_nothing_of_any_kind_of_file(run, number):
    artifact = examples()[number]
    ns.save(artifact, "f.safetensors")
    code, out, _ = run("show", "f.safetensors")
    assert code == 0
    assert not {"…", ESCAPE} & set(out)
    if isinstance(artifact, ns.NeuronScores):
        assert out.splitlines()[-1].split()[-1] in artifact.sites.paths


class TestViews:
    @pytest.fixture
    def drawn(self, run, monkeypatch):
        """What the plots were asked for, after `neuroscope plot` of scores with p-values."""
        sites = ns.Sites([ns.Site("unet.a", 0, "mid", "key", 40, True)])
        values = {"unet.a": torch.linspace(-2, 2, 40, dtype=torch.float64)}
        p_values = {"unet.a": torch.linspace(0.001, 1, 40, dtype=torch.float64)}
        ns.save(ns.NeuronScores(sites, values, neutral=0.0, two_sided=True, p_values=p_values), "s.safetensors")
        asked = []
        for name in ("neurons", "volcano"):
            plot = getattr(plots, name)
            monkeypatch.setattr(
                plots, name, lambda scores, plot=plot, name=name, **given: asked.append((name, given)) or plot(scores, **given)
            )
        return lambda *options: run("plot", "s.safetensors", "-o", "p.png", *options), asked

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ((), ("neurons", {"view": "map", "marked": None})),
            (("--view", "sorted"), ("neurons", {"view": "sorted", "marked": None})),
            (("--view", "top"), ("neurons", {"view": "top"})),
            (("--view", "top", "--top", 5), ("neurons", {"view": "top", "top": 5})),
            (("--view", "volcano", "--top", 2), ("volcano", {"named": 2})),
        ],
    )
    def test_each_view_is_drawn(self, drawn, options, expected):
        plot, asked = drawn
        assert plot(*options)[0] == 0
        assert asked == [expected]

    def test_top_outlines_neurons_in_the_sorted_view(self, drawn):
        plot, asked = drawn
        assert plot("--view", "sorted", "--top", 3)[0] == 0
        assert asked[0][1]["marked"].count == 3

    def test_a_talks_figure_is_larger(self, drawn):
        sizes = []
        for context in ("paper", "talk"):
            assert drawn[0]("--context", context)[0] == 0
            with Image.open("p.png") as image:
                sizes.append(image.size)
        assert sizes[1] > sizes[0]

    @pytest.mark.parametrize(("option", "word"), [("--view", "vulcano"), ("--context", "poster")])
    def test_an_unknown_word_is_answered_with_the_known_ones(self, drawn, option, word):
        code, _, said = drawn[0](option, word)
        assert code == 2
        assert f"{option.strip('-')} {word!r} is unknown; choose one of" in said

    def test_layers_have_no_view_of_neurons(self, run):
        ns.save(ns.LayerScores((0, 1), (1.0, 2.0)), "l.safetensors")
        code, _, said = run("plot", "l.safetensors", "--view", "top", "-o", "p.png")
        assert code == 2
        assert "--view would be ignored" in said
