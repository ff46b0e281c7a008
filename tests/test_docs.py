"""Runs every code block of the README and the docs, in order, in a folder of its own."""

import re
import shlex
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import neuroscope as ns
from neuroscope.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OUTSIDE = ("make ", "git ", "cd ", "neuroscope demo")


def _blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in _blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)
    plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_run(page, tmp_path, monkeypatch, untyped):
    monkeypatch.chdir(tmp_path)
    for line in "\n".join(_blocks(page, "sh")).splitlines():
        if line and not line.startswith(OUTSIDE):
            program, *arguments = shlex.split(line, comments=True)
            assert program == "neuroscope", line
            with pytest.raises(SystemExit) as stopped:
                main(arguments)
            assert not stopped.value.code, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_blocks_are_concepts(page, tmp_path):
    for number, code in enumerate(_blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(code)
        assert ns.Concept.from_file(file).name == tomllib.loads(code)["name"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_public_name_is_documented_once():
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(ns.__all__)
    assert all(getattr(ns, name).__doc__ for name in ns.__all__)
