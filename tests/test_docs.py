"""Runs every code block of the README and the docs, in order, in a folder of its own."""

import re
import shlex
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import neuroscope as ns
from docs import imports, reference
from neuroscope.cli import main
from tests.published import stand_in

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OUTSIDE = ("make ", "git ", "cd ", "neuroscope demo")


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    stand_in(monkeypatch)


def _blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


@pytest.mark.parametrize("page", [*PAGES, RECIPES], ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore:.* was made on '.*' and is applied to:UserWarning")
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in _blocks(page, "python"):
        capsys.readouterr()
        exec(compile(code, page.name, "exec"), names)
        assert "except ns." not in code or capsys.readouterr().out, f"nothing is raised by:\n{code}"
    plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_run(page, tmp_path, monkeypatch, untyped):
    monkeypatch.chdir(tmp_path)
    for line in "\n".join(_blocks(page, "sh")).splitlines():
        if line and not line.startswith(OUTSIDE):
            program, *arguments = shlex.split(line, comments=True)
            assert program == "neuroscope", line
            with pytest.raises(SystemExit) as stopped:
                main(arguments)
            assert not stopped.value.code, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_toml_blocks_are_concepts(page, tmp_path):
    for number, code in enumerate(_blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(code)
        assert ns.Concept.from_file(file).name == tomllib.loads(code)["name"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_public_name_has_an_executed_example():
    shown = reference.examples()
    assert sorted(shown) == sorted(ns.__all__)
    for name, text in shown.items():
        assert re.search(rf"^```python\n.*?\bns\.{name}\b.*?^```", text, re.MULTILINE | re.DOTALL), name


def test_every_public_name_is_on_one_page_of_the_api():
    entries = [line.removeprefix("::: ") for text in reference.pages().values() for line in text.splitlines() if line.startswith("::: ")]
    assert sorted(entries) == sorted(reference.path(name) for name in ns.__all__)


def test_every_page_is_in_the_site():
    settings = (ROOT / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]] + list(reference.pages())
    listed = re.findall(r": ([\w/-]+\.md)$", settings, re.MULTILINE)
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_begin_with_their_use(page):
    """A title, then a paragraph before any list, table, code or subtitle."""
    title, lead, *_ = page.read_text().split("\n\n")
    assert title.startswith("# ")
    assert re.match(r"(?!```)[\w`]", lead), lead


def test_the_drawing_of_the_imports_is_up_to_date():
    assert imports.DRAWING.read_text() == imports.drawing(), "run `python -m docs.imports`"


def test_a_way_through_other_rooms_implies_an_import():
    found = {("top", "middle"), ("middle", "bottom"), ("top", "bottom"), ("top", "aside")}
    assert imports.essential(found) == found - {("top", "bottom")}


def test_nobody_is_told_to_install_another_project():
    """On the package index "neuroscope" is another project."""
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "neuroscope").rglob("*.py")]
    assert [str(path) for path in sources if re.search(r"pip install ['\"]?neuroscope", path.read_text())] == []
