import ast
from pathlib import Path

import pytest

import neuroscope

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
