import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import neuroscope
from neuroscope.core import distribution
from tests import versions

ROOT = Path(neuroscope.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {str(path): ast.parse(path.read_text()) for path in sorted(Path(neuroscope.__file__).parent.rglob("*.py"))}
ARRAYS = {"Bool", "Float", "Int"}


@pytest.mark.parametrize("name", neuroscope.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert getattr(neuroscope, name).__doc__


def test_the_public_names_are_sorted_and_given_once():
    assert neuroscope.__all__ == sorted(set(neuroscope.__all__))


def test_axis_names_are_strings():
    """Without its quotes an axis name such as "neuron" is an unknown name, which fails when annotations are read."""
    arrays = [
        (path, node)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ARRAYS
    ]
    unquoted = [f"{path}:{node.lineno} {ast.unparse(node)}" for path, node in arrays if not isinstance(node.slice.elts[1], ast.Constant)]
    assert unquoted == []


def test_the_distribution_is_the_one_of_pyproject():
    assert distribution.DISTRIBUTION == PROJECT["project"]["name"]
    assert distribution.version() == PROJECT["project"]["version"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]


def test_types_are_published():
    assert (ROOT / "neuroscope" / "py.typed").exists()


def test_no_type_error_is_disabled():
    settings = PROJECT["tool"]["mypy"]
    assert settings["strict"] is True
    assert not any(name.startswith(("disable", "disallow", "warn", "check")) for name in settings)


def test_hooks_before_a_commit_are_the_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = re.search(r"^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    commands = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in checks.splitlines()]
    assert [each["entry"] for each in hooks] == commands


def test_every_extra_and_its_needs_are_pinned():
    pinned = {_plain(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    needed = [each for extra in PROJECT["project"]["optional-dependencies"].values() for each in extra]
    names = {_plain(re.match(r"[\w.-]+", each)[0]) for each in [*PROJECT["project"]["dependencies"], *needed]}
    assert names - {distribution.DISTRIBUTION} <= pinned


def _plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def interpreters(tmp_path):
    """Makes a folder of stand-ins for Python: by name the version, and whether it can make environments."""

    def make(**versions):
        for name, (version, complete) in versions.items():
            file = tmp_path / name.replace("_", ".")
            fits = 0 if (3, 11) <= version <= (3, 14) else 1
            file.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit {0 if complete else 1};; *version_info*) exit {fits};; esac\n')
            file.chmod(0o755)
        return tmp_path

    return make


def _choose(folder, **environment):
    return subprocess.run(
        ["/bin/sh", ROOT / ".ci" / "python.sh"], env={"PATH": str(folder)} | environment, capture_output=True, text=True, check=False
    )


def test_the_newest_python_is_chosen(interpreters):
    folder = interpreters(python3_11=((3, 11), True), python3_13=((3, 13), True), python3=((3, 11), True))
    assert _choose(folder).stdout == "python3.13\n"
    assert _choose(folder, PYTHON="python3.11").stdout == "python3.11\n"


def test_a_python_that_makes_no_environments_is_passed_over(interpreters):
    folder = interpreters(python3_13=((3, 13), False), python3_11=((3, 11), True))
    assert _choose(folder).stdout == "python3.11\n"


@pytest.mark.parametrize(("version", "chosen"), [((3, 11), "python3\n"), ((3, 10), ""), ((3, 15), "")])
def test_python3_is_chosen_if_its_version_fits(interpreters, version, chosen):
    assert _choose(interpreters(python3=(version, True))).stdout == chosen


def test_one_line_says_which_python_is_missing(interpreters):
    done = _choose(interpreters(python3=((3, 10), True)))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("neuroscope needs Python 3.11 to 3.14, and found none of these: python3.14 python3.13")
    assert "apt install python3 python3-venv" in done.stderr
    assert "make demo PYTHON=" in done.stderr


def test_one_line_says_which_modules_are_missing(interpreters):
    done = _choose(interpreters(python3=((3, 11), False)))
    assert (done.returncode, done.stderr) == (
        1,
        "python3 lacks the modules venv and ensurepip: install them (Debian and Ubuntu: apt install python3-venv)\n",
    )


def test_both_ends_of_the_versions_are_tried():
    lowest, newest = (versions.requirements(end) for end in versions.ENDS)
    assert [each.partition("==")[0] for each in lowest] == list(versions.VARIED)
    assert set(newest) <= set(PROJECT["project"]["dependencies"])
    assert all(f">={low.partition('==')[2]}" in high for low, high in zip(lowest, newest, strict=True))
