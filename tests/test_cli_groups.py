"""Groups of options: a frozen dataclass is one parameter of a command."""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, get_args

import pytest
import typer
from typer.testing import CliRunner

import neuroscope.cli
from neuroscope.cli import options
from neuroscope.cli.app import app as application
from neuroscope.cli.commands import App, LightCommand, spread
from neuroscope.editing import LocoEdit
from neuroscope.generation.experiment import PAIRS


@dataclass(frozen=True)
class Size:
    panel: ClassVar[str] = "Size"
    height: Annotated[int, typer.Option(help="Pixels.")]
    width: Annotated[int | None, typer.Option("--width", "-w")] = None


@dataclass(frozen=True)
class Coloured(Size):
    grey: Annotated[bool, typer.Option("--grey")] = False


def draw(ctx: typer.Context, file: Path, *, size: Coloured, loud: bool = False) -> None:
    """Draw a file."""
    typer.echo(f"{file} {size} {loud} {ctx.info_name}")


@pytest.fixture
def run():
    app = App(rich_markup_mode=None)
    app.command("draw", cls=LightCommand)(draw)
    app.command("other", cls=LightCommand)(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_a_group_arrives_as_one_object(run):
    assert run("draw", "f", "--height", "3", "-w", "4", "--grey", "--loud").output == f"f {Coloured(3, 4, True)} True draw\n"
    assert run("draw", "f", "--height", "3").output == f"f {Coloured(3)} False draw\n"


def test_a_needed_option_of_a_group_is_needed(run):
    finished = run("draw", "f")
    assert finished.exit_code == 2
    assert "Missing option '--height'" in finished.output


def test_the_help_shows_groups_under_their_titles(run):
    lines = [line.split()[0] for line in run("draw", "--help").output.splitlines() if line.strip()]
    expected = ["Usage:", "Draw", "Arguments:", "file", "Options:", "--loud", "--help", "Size:", "--height", "-w,", "--grey"]
    assert [line for line in lines if line in expected] == expected


def test_the_signature_is_that_of_the_options():
    made = inspect.signature(spread(draw)).parameters
    assert list(made) == ["ctx", "file", "height", "width", "grey", "loud"]
    assert made["height"].default is inspect.Parameter.empty
    assert Size.__annotations__["height"].__metadata__[0].rich_help_panel is None  # the group's own option stays as it is


def test_one_name_in_two_groups_is_refused():
    def twice(*, size: Size, other: Coloured) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'height'"):
        spread(twice)


def test_no_function_of_the_command_line_takes_more_than_twelve_parameters():
    found = [
        (path.name, node.name)
        for path in Path(neuroscope.cli.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) > 12
    ]
    assert found == []


def test_every_option_has_help_and_belongs_to_a_type():
    for name, command in typer.main.get_command(application).commands.items():
        for param in getattr(command, "params", []):
            assert param.param_type_name == "argument" or param.help, (name, param.name)


def test_numbers_in_the_help_are_those_of_the_package():
    edit = typer.main.get_command(application).commands["edit"]
    assert next(param.default for param in edit.params if param.name == "ridge") == LocoEdit.ridge
    assert f"by default {PAIRS}, " in get_args(options.Pairs)[1].help
