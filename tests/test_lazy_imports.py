"""What is imported when: nothing heavy by `import neuroscope`, by help and by shell completion; all kinds of files by `load`."""

import ast
import operator
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import neuroscope as ns
from neuroscope.core.artifacts import Artifact
from tests.fuzz.examples import examples

HEAVY = ("captum", "diffusers", "matplotlib", "numpy", "pandas", "scipy", "seaborn", "torch", "transformers")
PRINT = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
RUN = """
import atexit, sys
atexit.register(lambda: exec({print!r}))
sys.argv = ["neuroscope", *{arguments!r}]
from neuroscope.cli import main
main()
"""


def imported_by(code, **environment):
    """The heavy packages that a new process imports, which must end well and print something or nothing on standard output."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stderr.split(), finished.stdout


def test_importing_the_package_imports_nothing_heavy():
    assert imported_by(f"import neuroscope; {PRINT}") == ([], "")


@pytest.mark.parametrize("arguments", [["--help"], ["localize", "--help"], ["testbed", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    found, out = imported_by(RUN.format(print=PRINT, arguments=arguments))
    assert found == []
    assert out


def test_shell_completion_imports_nothing_heavy():
    line = {"_NEUROSCOPE_COMPLETE": "complete_bash", "COMP_WORDS": "neuroscope localize --style stipple --seeds 2 --me", "COMP_CWORD": "6"}
    assert imported_by(RUN.format(print=PRINT, arguments=[]), **line) == ([], "--method\n--metric\n")


def test_the_stub_re_exports_every_public_name_and_nothing_else():
    tree = ast.parse(Path(ns.__file__).with_suffix(".pyi").read_text())
    _documented, *imports, version = tree.body
    assert ast.unparse(version) == "__version__: str"
    assert all(each.asname == each.name for line in imports for each in line.names)  # or type checkers would not re-export it
    assert ns.__all__ == sorted(each.name for line in imports for each in line.names)
    assert dir(ns) == sorted([*ns.__all__, "__version__"])


def test_every_name_is_what_its_home_has():
    homes = {name: import_module(home) for home, names in ns.HOMES.items() for name in names}
    assert [name for name, home in homes.items() if getattr(ns, name) is not vars(home)[name]] == []


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'neuroscope' has no attribute 'Welsh'"):
        operator.attrgetter("Welsh")(ns)


def test_report_stays_the_function_where_its_room_is_imported(monkeypatch):
    monkeypatch.delitem(vars(ns), "report", raising=False)
    monkeypatch.delitem(sys.modules, "neuroscope.report", raising=False)  # so that the import sets the package's attribute
    import_module("neuroscope.report")
    assert ns.report.__name__ == "report"
    assert ns.plots.__name__ == "neuroscope.report.plots"


def kinds(base=Artifact):
    """All classes of files of the package that are imported now."""
    inner = {kind for each in base.__subclasses__() for kind in kinds(each)}
    return inner | ({base} if "kind" in vars(base) and base.__module__.startswith("neuroscope.") else set())


def test_every_kind_of_file_is_at_home_where_load_looks():
    for each in pkgutil.walk_packages([str(Path(ns.__file__).parent)], "neuroscope."):
        if not each.name.endswith("__main__"):
            import_module(each.name)
    assert {type(each) for each in examples()} == kinds()
    assert all(vars(import_module(home))[kind.__name__] is kind for kind in kinds() for home in ns.HOMES if kind.__name__ in ns.HOMES[home])
    assert {kind.__name__ for kind in kinds()} <= set(ns.__all__)


def test_a_file_is_read_when_nothing_else_was_imported(tmp_path):
    made = next(each for each in examples() if isinstance(each, ns.ContextMap))
    path = ns.save(made, tmp_path / "edit.safetensors")
    found, out = imported_by(f"import neuroscope as ns; print(type(ns.load({str(path)!r})).__name__); {PRINT}")
    assert out == "ContextMap\n"
    assert not {"matplotlib", "seaborn", "captum"} & set(found)
