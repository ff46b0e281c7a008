"""A count of one has its noun in the singular: in what each object says of itself, and in every text that the code makes."""

import ast
import re
from pathlib import Path

import pytest

import neuroscope as ns
from neuroscope.core.errors import counted
from neuroscope.core.results.quality import Plan

ROOT = Path(__file__).parent.parent.parent
NOUNS = "call|image|layer|neuron|pair|prompt|seed|site|test prompt"
SLIP = re.compile(rf"(?<![\d.,])1 ({NOUNS})s\b")
SITES = ns.Sites([ns.Site("unet.0.key", 0, "mid", "key", 1, True)])
SAID = {
    "sites": SITES,
    "concept": ns.Concept("x", ["a red star"], ["a star"], ["a red sun"]),
    "neurons": ns.Neurons({"unet.0.key": [0]}, {"unet.0.key": 1}),
    "mask": ns.NeuronMask(ns.Neurons({"unet.0.key": [0]}, {"unet.0.key": 1})).summary().verdict,
    "layers": ns.LayerScores((0,), (1.0,)),
    "plan": Plan(1, 1),
}
# Values that are texts or lists, such as "1 present and 2 absent".
TEXTS = {"arm", "counts", "given", "self.rows", "sorted(widths)", "what"}
# Words behind a value that is no count, such as a name: "NAME gives scores".
VERBS = "finds|gives|holds|loses|makes|moves|needs|and|for|are not|names|of|ranks|reads|scores|takes"


@pytest.mark.parametrize("name", SAID)
def test_one_is_singular(name):
    assert re.search(rf"\b1 ({NOUNS})\b", str(SAID[name]))
    assert not SLIP.search(str(SAID[name]))


def test_a_count_has_its_noun():
    assert [counted(count, "site") for count in (0, 1, 2, 1000)] == ["0 sites", "1 site", "2 sites", "1,000 sites"]


def test_a_count_has_the_verb_that_goes_with_it():
    assert [counted(count, "patch", ("is", "are")) for count in (0, 1, 2)] == ["0 patches are", "1 patch is", "2 patches are"]


def _sources():
    return [path for room in ("neuroscope", "benchmarks", "docs") for path in sorted((ROOT / room).rglob("*.py"))]


def _called(node):
    return getattr(node.func, "id", None) if isinstance(node, ast.Call) else None


def _counted_nouns(trees):
    """Every noun that is counted anywhere, in the plural: what the law looks for is what the code counts."""
    calls = [node for tree in trees for node in ast.walk(tree) if _called(node) == "counted" and isinstance(node.args[1], ast.Constant)]
    singulars = {call.args[1].value for call in calls}
    return {counted(2, noun).split()[-1] for noun in singulars} | {"steps", "batches", "heads", "tables", "files", "samples", "blocks"}


def _is_many_or_text(value):
    """Whether a value in a text is surely no count of one: a constant of the module, a rounded number, or a text in quotes."""
    said = ast.unparse(value.value)
    named = said.split(".")[0].isupper() or said in TEXTS
    rounded = value.format_spec is not None and any("." in str(getattr(part, "value", "")) for part in value.format_spec.values)
    return named or rounded or value.conversion == ord("r") or _called(value.value) == "counted"


def _texts(tree):
    """Every f-string, and the places of its values that can be a count of one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(_part(part) for part in node.values)


def _part(part):
    if isinstance(part, ast.Constant):
        return str(part.value)
    return "§" if _is_many_or_text(part) else "#"


def _slips(texts, nouns):
    """Lines with a bare value before a plural noun, at most one other word between them."""
    slip = re.compile(rf"#(?: (?!(?:{VERBS}) )[a-z-]+)? (?:{'|'.join(sorted(nouns))})\b")
    return [(line, text) for line, text in texts if slip.search(text)]


def test_the_law_finds_a_slip_and_leaves_what_is_right():
    made = """f"{n} images"; f"{len(x)} damaged rows are"; f"{n:,} images"
f"{counted(n, 'image')} of prompts"; f"{x:.1f} images"; f"{name!r} images"; f"{PAIRS} images" """
    assert [text for _, text in _slips(_texts(ast.parse(made)), {"images", "rows"})] == ["# images", "# damaged rows are", "# images"]


def test_no_text_has_a_bare_count_before_a_plural():
    trees = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in _sources()}
    nouns = _counted_nouns(trees.values())
    assert {"images", "layers", "neurons", "prompts", "patches"} <= nouns
    found = {f"{path}:{line}": text for path, tree in trees.items() for line, text in _slips(_texts(tree), nouns)}
    assert found == {}


def _with_counts(node):
    counts = ["§" if _called(getattr(part, "value", None)) == "counted" else "#" for part in node.values]
    return "".join(part.value if isinstance(part, ast.Constant) else count for part, count in zip(node.values, counts, strict=True))


def test_no_counted_noun_is_followed_by_a_verb_of_the_plural():
    """The verb goes through `counted` too; of two counts that "and" joins it is in the plural anyhow."""
    plural = re.compile(r"(?<!and )§ (are|do|have|were|make|take|give|need|stand|fill|share|hold)\b")
    nodes = [(path.name, node) for path in _sources() for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)]
    assert [(name, node.lineno, _with_counts(node)) for name, node in nodes if plural.search(_with_counts(node))] == []
